"""Stage 2, alignment: the reasoner learns the queries that the ranker ranks best by (paper section 4.2).

    run/config.yaml  inputs.json  checkpoint/  tensorboard/   while it runs
    run/model/                                                a checkpoint that every backend loads, with its tokenizer
    run/metrics.json  done                                    held-out cos(h, e+), losses and margins as curves

A run killed at any point goes on from its newest whole checkpoint and ends with the weights of an undisturbed one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rgalign.errors import DataError
from rgalign.files import write_atomic
from rgalign.reasoner.pretrained import without_weights_bar
from rgalign.room_on_disk import room_on_disk
from rgalign.training.alignment.alignment_config import AlignmentConfig, Objective
from rgalign.training.alignment.alignment_inputs import AlignmentInputs
from rgalign.training.alignment.batches import (
    CompletionBatch,
    PreferenceBatch,
    completion_rows,
    pair_rows,
    softmax_rows,
)
from rgalign.training.alignment.curves_page import NAMES, curves_page
from rgalign.training.alignment.frozen_head import frozen_head
from rgalign.training.alignment.held_out_rewards import HeldOutRewards
from rgalign.training.alignment.policy import MODEL, Policy, finished_model, load_policy, lora, save_model
from rgalign.training.alignment.tokenised import TokenisedPreference
from rgalign.training.alignment.trainer_arguments import trainer_arguments
from rgalign.training.alignment.whole_checkpoints import newest_whole, remove_torn
from rgalign.training.run_directory import RunDirectory
from rgalign.training.run_log import RunLog

OnStep = Callable[[int], None]


def align(
    objective: Objective,
    config: AlignmentConfig,
    run_dir: Path,
    *,
    restart: bool = False,
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Trains, goes on with, or skips one run of RG-SFT, RG-CL or RG-DPO.

    Args:
        restart: throw away what ``run_dir`` holds and begin again.
        on_step: called after each optimiser step with the number of steps taken.

    Returns:
        The contents of metrics.json.

    Raises:
        DataError: an empty selection, a loss that is not finite, or a full disk (what was finished stays).
        ConfigError: settings that contradict each other, or a model without a chat format.
        ProvenanceError: ``run_dir`` holds a run of other inputs, or the inputs do not belong together.
    """
    config = config.for_objective(objective)
    from accelerate import PartialState

    processes = PartialState(cpu=config.device == "cpu")
    inputs = AlignmentInputs.open(config, objective)
    config.batch_plan(processes.num_processes)
    trained, held_out = inputs.sessions()
    run = RunDirectory(run_dir)
    if restart and processes.is_main_process:
        run.clear()
    processes.wait_for_everyone()
    run.require(inputs.identity)
    if not run.is_done:
        processes.wait_for_everyone()
        if processes.is_main_process:
            run.begin(inputs.identity, config)
            remove_torn(run.path / "checkpoint")
        processes.wait_for_everyone()
        with room_on_disk(run_dir):
            _Alignment.prepare(inputs, run, trained, held_out).train(on_step)
        processes.wait_for_everyone()
    return run.metrics()


@dataclass
class _Alignment:
    """One run, ready to train."""

    inputs: AlignmentInputs
    run: RunDirectory
    policy: Policy
    trainer: Any
    num_sessions: int
    num_held_out: int

    @classmethod
    def prepare(
        cls,
        inputs: AlignmentInputs,
        run: RunDirectory,
        trained: list[TokenisedPreference],
        held_out: list[TokenisedPreference],
    ) -> _Alignment:
        config = inputs.config
        processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        arguments = trainer_arguments(config, inputs.objective, run.path / "checkpoint", processes)
        policy = load_policy(config, inputs.reference)
        _check_length(trained + held_out, policy)
        if policy.states is not None:
            _fill_states(inputs, policy, trained + held_out)
        trainer = build_trainer(inputs, policy, arguments, trained, held_out)
        return cls(inputs, run, policy, trainer, inputs.num_sessions(trained), inputs.num_sessions(held_out))

    def train(self, on_step: OnStep | None) -> None:
        from transformers import PrinterCallback

        from rgalign.training.alignment.curves import Curves
        from rgalign.training.alignment.supervised_positions import supervised_positions_only

        trainer, config = self.trainer, self.inputs.config
        checkpoint = newest_whole(self.run.path / "checkpoint")
        main = trainer.accelerator.is_main_process
        steps = -(-len(trainer.train_dataset) // config.effective_batch) * config.epochs
        begun = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
        began = time.perf_counter()
        with RunLog(self.run.path / "tensorboard", total_steps=steps, step=begun, enabled=main) as log:
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(Curves(log, sessions_per_step=config.effective_batch, on_step=on_step))
            if self.num_held_out and checkpoint is None:
                trainer.args.eval_on_start = True
            with supervised_positions_only(), frozen_head(), without_weights_bar():  # of its checkpoints
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
                if self.num_held_out and not _measured_last(trainer.state):
                    trainer.evaluate()
        self._save()
        if main:
            metrics = self._metrics(time.perf_counter() - began)
            title = f"{self.inputs.objective} on {metrics['sessions']:,} sessions"
            write_atomic(self.run.path / "curves.html", curves_page(title, metrics).encode())
            self.run.finish(metrics)

    def _save(self) -> None:
        trainer, inputs = self.trainer, self.inputs
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if not trainer.accelerator.is_main_process:
            return
        trained = trainer.accelerator.unwrap_model(trainer.model_wrapped)
        model, weights = finished_model(self.policy, trained, weights)
        card = {name: inputs.identity[name] for name in ("objective", "base", "init", "config")}
        save_model(self.run.path / MODEL, model, weights, self.policy.tokenizer, card)

    def _metrics(self, seconds: float) -> dict[str, Any]:
        state = self.trainer.state
        measured = [entry for entry in state.log_history if "eval_loss" in entry]
        shown = [{name: value for name, value in entry.items() if _is_result(name)} for entry in measured]
        logged = [entry for entry in state.log_history if "loss" in entry]
        curves = [{name: entry[name] for name in ("step", *NAMES) if name in entry} for entry in logged]
        trainable = [parameter.numel() for parameter in self.trainer.model.parameters() if parameter.requires_grad]
        return {
            "objective": self.inputs.objective,
            "sessions": self.num_sessions,
            "held_out_sessions": self.num_held_out,
            "rows": len(self.trainer.train_dataset),
            "steps": state.global_step,
            "epochs": self.inputs.config.epochs,
            "trainable_parameters": int(np.sum(trainable)),
            "before": shown[0] if shown else None,
            "after": shown[-1] if shown else None,
            "curves": {"train": curves, "held_out": shown},
            "seconds_of_this_process": seconds,
            "num_processes": self.trainer.accelerator.num_processes,
        }


def build_trainer(
    inputs: AlignmentInputs,
    policy: Policy,
    arguments: Any,
    trained: list[TokenisedPreference],
    held_out: list[TokenisedPreference],
) -> Any:
    """TRL's trainer for the objective over tokenised sessions."""
    from datasets import Dataset as Rows

    from rgalign.training.alignment.latent_trainer import LatentTrainer
    from rgalign.training.alignment.preference_trainer import PreferenceTrainer, SoftmaxPreferenceTrainer

    config, objective = inputs.config, inputs.objective
    targets = inputs.targets(trained, policy.whole.config.hidden_size)
    make_rows = completion_rows
    collate: Any = CompletionBatch(policy.pad_token_id)
    if objective == "dpo":
        make_rows = pair_rows if config.dpo.loss == "pair" else softmax_rows
        collate = PreferenceBatch(policy.pad_token_id)
    rows = make_rows(trained)
    if held_out:  # by steps, not by epochs: measured before the checkpoint of that step, which so holds the outcome
        arguments.eval_strategy = "steps"
        arguments.eval_steps = config.eval_steps or -(-len(rows) // config.effective_batch)
    shared: dict[str, Any] = {
        "model": policy.trained,
        "args": arguments,
        "data_collator": collate,
        "train_dataset": Rows.from_list(rows),
        "eval_dataset": Rows.from_list(make_rows(held_out)) if held_out else None,
        "processing_class": policy.tokenizer,
        "peft_config": lora(config.lora) if config.tuning == "lora" else None,
        "targets": targets,
    }
    if objective == "dpo":
        return (PreferenceTrainer if config.dpo.loss == "pair" else SoftmaxPreferenceTrainer)(**shared)
    weights = (config.contrast.weight, config.contrast.causal_weight) if objective == "contrast" else (0.0, 1.0)
    rewards = None
    if config.rewards is not None and targets is not None and held_out:
        measured = [session.row for session in held_out]
        rewards = HeldOutRewards(config.rewards, inputs.dataset, inputs.preferences, measured, targets)
    return LatentTrainer(**shared, rewards=rewards, contrast_weight=weights[0], causal_weight=weights[1])


def _fill_states(inputs: AlignmentInputs, policy: Policy, sessions: list[TokenisedPreference]) -> None:
    assert policy.states is not None
    prefix = inputs.prefix_ids(policy.tokenizer)
    rows = [
        np.array((session.prompt + query)[len(prefix) :], np.int32)
        for session in sessions
        for query in (session.chosen, *(session.rejected if inputs.objective == "dpo" else ()))
    ]
    policy.states.fill(rows, prefix_ids=prefix, progress=True)


def _check_length(sessions: list[TokenisedPreference], policy: Policy) -> None:
    longest = max(len(session.prompt) + max(map(len, (session.chosen, *session.rejected))) for session in sessions)
    limit = int(policy.whole.config.max_position_embeddings)
    if longest > limit:
        required = f"prompts and queries of at most {limit} tokens (max_tokens of the embedding)"
        raise DataError(where="selection", required=required, received=str(longest))


def _measured_last(state: Any) -> bool:
    return any("eval_loss" in entry and entry["step"] == state.global_step for entry in state.log_history)


def _is_result(name: str) -> bool:
    slow = ("runtime", "per_second", "num_tokens")
    return name in ("step", "epoch") or (name.startswith("eval_") and not name.endswith(slow))
