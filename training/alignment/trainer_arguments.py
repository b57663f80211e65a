"""TRL's arguments for a configuration, and DeepSpeed's."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from rgalign.training.alignment.alignment_config import AlignmentConfig, Objective
from rgalign.training.alignment.whole_checkpoints import KEPT

LOGGING_STEPS = 5
CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")  # transformers from 5.23 on, and before


def trainer_arguments(config: AlignmentConfig, objective: Objective, checkpoints: Path, processes: int) -> Any:
    """An SFTConfig or DPOConfig. With ZeRO the process group starts here."""
    from trl import DPOConfig, SFTConfig  # type: ignore[attr-defined]  # TRL re-exports lazily

    micro, accumulation = config.batch_plan(processes)
    known = {field.name for field in fields(SFTConfig)}
    checkpointing = next(name for name in CHECKPOINTING if name in known)
    shared: dict[str, Any] = {
        "output_dir": str(checkpoints),
        "num_train_epochs": config.epochs,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": config.warmup,  # a share, below 1
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.clip_norm,
        "optim": "adamw_torch",
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        checkpointing: config.gradient_checkpointing,
        "neftune_noise_alpha": config.neftune_alpha,
        "bf16": config.precision == "bf16",
        "use_cpu": config.device == "cpu",
        "dataloader_pin_memory": config.device != "cpu",
        "seed": config.seed,
        "save_strategy": "steps",
        "save_steps": config.checkpoint_steps,
        "save_total_limit": KEPT,
        "eval_strategy": "no",  # the trainer's builder knows whether there is something to measure
        "logging_steps": LOGGING_STEPS,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "deepspeed": deepspeed_config(config.zero_stage) if config.zero_stage else None,
        "max_length": None,
    }
    if objective == "dpo":
        return DPOConfig(**shared, beta=config.dpo.strength, loss_type=["sigmoid"], precompute_ref_log_probs=True)
    return SFTConfig(**shared, packing=False, dataset_kwargs={"skip_prepare_dataset": True})


def deepspeed_config(stage: int) -> dict[str, Any]:
    """ZeRO with torch's own AdamW: DeepSpeed's would be compiled first."""
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": False}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    return {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
    }
