"""What an alignment run is asked to do, and the three presets.

    paper            every weight, ZeRO-3, lr 5e-5 linear with 3 % warm-up, effective batch 24, NEFTune 5, 10 epochs
    single_gpu_lora  LoRA on every linear layer, bf16, gradient checkpointing
    small_cpu        the upper layers alone; the states below them are computed once and kept on disk

A key that is given wins over the preset's.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ModelWrapValidatorHandler, model_validator

from rgalign.config import Config
from rgalign.errors import ConfigError

Objective = Literal["sft", "contrast", "dpo"]
Preset = Literal["paper", "single_gpu_lora", "small_cpu"]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"tuning": "full", "zero_stage": 3, "precision": "bf16", "device": "auto", "neftune_alpha": 5.0},
    "single_gpu_lora": {
        "tuning": "lora",
        "precision": "bf16",
        "device": "auto",
        "gradient_checkpointing": True,
        "neftune_alpha": 5.0,
    },
    "small_cpu": {"tuning": "upper", "epochs": 3, "micro_batch": 8},
}
# DPO pushes likelihoods apart without a target to stop at: TRL's rate and one epoch, unless asked otherwise.
DPO_DEFAULTS: dict[str, Any] = {"learning_rate": 1e-6, "epochs": 1}


class ContrastConfig(Config):
    """RG-CL.

    Args:
        space: cosines of states as they are, as published, or of ``standardized`` ones (contrast_space.py).
        tau: temperature.
        weight, causal_weight: of the contrastive and of the causal language-model term.
        bank: frozen chosen-query embeddings that are negatives in every step; 0 has the batch's own alone.
        false_negative_cosine: two chosen queries nearer than this are no negatives of each other.
    """

    space: Literal["standardized", "raw"] = "standardized"
    tau: Positive = 0.05
    weight: float = Field(1.0, ge=0)
    causal_weight: float = Field(0.01, ge=0)
    bank: int = Field(4096, ge=0)
    false_negative_cosine: float = Field(0.99, gt=0)


class DPOConfig(Config):
    """RG-DPO.

    Args:
        beta: how far the policy is held to the reference; None is 0.1 for pairs, 1.0 for S-DPO.
        loss: ``pair`` one loss a (chosen, rejected) pair, by TRL; ``softmax`` S-DPO, one loss a session.
        max_rejected: rejected queries of a session that are used, the best first as the selection orders them.
    """

    beta: Positive | None = None
    loss: Literal["pair", "softmax"] = "pair"
    max_rejected: Count = 3

    @property
    def strength(self) -> float:
        return self.beta if self.beta is not None else (0.1 if self.loss == "pair" else 1.0)


class LoraSettings(Config):
    rank: Count = 16
    alpha: Count = 64
    dropout: float = Field(0.0, ge=0, lt=1)


class AlignmentConfig(Config):
    """One run of RG-SFT, RG-CL or RG-DPO.

    Args:
        selection: directory of ``rgalign train select``.
        dataset: the sessions behind it.
        latents: latent queries whose embed.yaml says which reasoner, template and chat format the prompts have.
        init: an earlier alignment run (or a model directory) to start from; None is the reasoner of ``latents``.
        targets: [rows of the selection, D] .npy of frozen chosen-query embeddings; None is the selection's own.
        rewards: the run of ``rgalign train reward`` behind the selection; its rankers then judge the held-out sessions'
            latent queries (held_out_rewards.py). It changes no weight.
        held_out: share of the sessions that are only measured, at most ``max_held_out``; 0 is none. Drawn by a hash of
            the session's id; DPO measures those with a rejected query.
        effective_batch: sessions (pairs for DPO) of one optimiser step over all processes.
        micro_batch: of one process at once; None is the largest divisor up to 8.
        warmup: share of the steps.
        neftune_alpha: noise on the token embeddings in training; None is none.
        upper_layers: for tuning ``upper``: how many layers (and the final norm) train.
        state_cache: for tuning ``upper``: where lower states are kept; None is the user's cache.
        checkpoint_steps: optimiser steps between checkpoints.
        eval_steps: optimiser steps between measurements of the held-out sessions; None is once an epoch.
    """

    preset: Preset = "paper"
    selection: Path
    dataset: Path
    latents: Path
    init: Path | None = None
    targets: Path | None = None
    rewards: Path | None = None
    held_out: float = Field(0.05, ge=0, lt=1)
    max_held_out: Count = 256

    tuning: Literal["full", "lora", "upper"] = "full"
    epochs: Count = 10
    learning_rate: Positive = 5e-5
    warmup: float = Field(0.03, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: Positive = 1.0
    effective_batch: Count = 24
    micro_batch: Count | None = None
    neftune_alpha: Positive | None = None
    gradient_checkpointing: bool = False
    precision: Literal["float32", "bf16"] = "float32"
    device: Literal["auto", "cpu"] = "cpu"
    zero_stage: Literal[0, 1, 2, 3] = 0
    seed: int = 0
    checkpoint_steps: Count = 100
    eval_steps: Count | None = None

    contrast: ContrastConfig = Field(default_factory=lambda: ContrastConfig.model_validate({}))
    dpo: DPOConfig = Field(default_factory=DPOConfig)
    lora: LoraSettings = Field(default_factory=lambda: LoraSettings.model_validate({}))
    upper_layers: Count = 6
    state_cache: Path | None = None
    state_dtype: Literal["float32", "float16"] = "float32"

    @model_validator(mode="wrap")
    @classmethod
    def _fill(cls, values: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """The preset's values are defaults: ``model_fields_set`` has what was given, no more."""
        if not isinstance(values, dict):
            return validate(values)
        config = validate({**PRESETS.get(values.get("preset", "paper"), {}), **values})
        config.__pydantic_fields_set__.intersection_update(values)
        return config

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.tuning == "upper" and self.neftune_alpha is not None:
            required = "no neftune_alpha with tuning: upper (its token embeddings lie below the cached states)"
            raise ConfigError(where="alignment", required=required, received=str(self.neftune_alpha))
        if self.tuning != "full" and self.zero_stage:
            required = f"zero_stage: 0 with tuning: {self.tuning} (ZeRO shards the weights of tuning: full)"
            raise ConfigError(where="alignment", required=required, received=str(self.zero_stage))
        if self.micro_batch is not None and self.effective_batch % self.micro_batch:
            required = f"a micro_batch that divides effective_batch {self.effective_batch}"
            raise ConfigError(where="alignment", required=required, received=str(self.micro_batch))
        return self

    def require_deepspeed(self) -> None:
        """Raises ConfigError: ZeRO, and DeepSpeed is not installed."""
        if self.zero_stage and find_spec("deepspeed") is None:
            required = "the extra `zero` (docs/alignment.md), or a preset without ZeRO, such as small_cpu"
            received = f"preset {self.preset} with zero_stage {self.zero_stage}, and no deepspeed"
            raise ConfigError(where="alignment", required=required, received=received)

    def for_objective(self, objective: Objective) -> AlignmentConfig:
        """With the objective's own defaults where the user gave no value."""
        if objective != "dpo":
            return self
        changes = {key: value for key, value in DPO_DEFAULTS.items() if key not in self.model_fields_set}
        return self.model_copy(update=changes)

    def identity(self) -> dict[str, Any]:
        """What decides the outcome: not where files lie, nor how often they are written."""
        paths = {"selection", "dataset", "latents", "init", "targets", "rewards", "state_cache", "checkpoint_steps"}
        identity: dict[str, Any] = self.model_dump(mode="json", exclude=paths)
        return identity

    def batch_plan(self, processes: int) -> tuple[int, int]:
        """Micro-batch and accumulation steps.

        Raises:
            ConfigError: the effective batch cannot be dealt out evenly.
        """
        share, rest = divmod(self.effective_batch, processes)
        if rest:
            required = f"effective_batch divisible by {processes} processes"
            raise ConfigError(where="alignment", required=required, received=str(self.effective_batch))
        micro = self.micro_batch or max(size for size in range(1, min(share, 8) + 1) if share % size == 0)
        if share % micro:
            required = f"a micro_batch that divides {share} sessions a process"
            raise ConfigError(where="alignment", required=required, received=str(micro))
        return micro, share // micro
