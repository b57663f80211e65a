"""Stage 1: trains a ranker (QE-Rec or the baseline) on logged sessions.

    minimise sum_j w_j KL(click_j || softmax(scale * s_j))    over `train`, keep the epoch that ranks `valid` best

AdamW, gradient norm clipped, early stop. A run killed at any point and started again ends with the same weights to the
bit: its state holds weights, moments, random states and the position in the data, and the learning rate is a function
of them. Several processes (torchrun, accelerate launch) deal each batch out among them.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import gather_object
from torch import Tensor

from rgalign.errors import DataError, ProvenanceError
from rgalign.models import Ranker, build_ranker
from rgalign.training.click_confidence import click_confidence, write_confidence
from rgalign.training.optimiser import LR_DROP, adamw, learning_rate, set_learning_rate
from rgalign.training.ranker_files import LoadedRanker, load_ranker, save_ranker
from rgalign.training.ranker_scores import joined, score_split, split_metrics
from rgalign.training.run_directory import CONFIDENCE, RunDirectory
from rgalign.training.run_log import RunLog
from rgalign.training.sessions import Order, Step
from rgalign.training.stage1_config import Stage1Config
from rgalign.training.stage1_inputs import Stage1Inputs
from rgalign.training.trainer_state import Checkpoints, Progress, RandomState

__all__ = ["LoadedRanker", "Stage1Config", "load_ranker", "score_split", "train_stage1"]

OnStep = Callable[[int], None]
SCALAR_STEPS = 20
EVALUATION_BATCH = 1024


def train_stage1(
    config: Stage1Config, run_dir: Path, *, restart: bool = False, on_step: OnStep | None = None
) -> dict[str, Any]:
    """Trains, goes on with, or skips the run in ``run_dir``.

    Args:
        restart: throw away what ``run_dir`` holds and begin again.
        on_step: called after each step with the number of steps taken.

    Returns:
        The contents of metrics.json.

    Raises:
        ProvenanceError: ``run_dir`` holds a run of other inputs, or the latent queries are not this dataset's.
        DataError: a split without sessions, or a loss that is not finite.
    """
    with torch_threads(config.num_threads):
        return _train(config, run_dir, restart=restart, on_step=on_step)


def _train(config: Stage1Config, run_dir: Path, *, restart: bool, on_step: OnStep | None) -> dict[str, Any]:
    accelerator = Accelerator(
        cpu=config.device == "cpu",
        mixed_precision="no",  # autocast is ours: accelerate keeps this setting for the life of the process
        # A schema without histories leaves their tables unused; buffers are constants.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)],
    )
    inputs = Stage1Inputs.open(config)
    run = RunDirectory(run_dir)
    if restart and accelerator.is_main_process:
        run.clear()
    accelerator.wait_for_everyone()
    run.require(inputs.identity)
    if not run.is_done:
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            run.begin(inputs.identity, config)
        Stage1(inputs, run, accelerator).run(on_step)
    return run.metrics()


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """``count`` threads inside (None: as they are), and as many as before afterwards: a loop's other steps want all."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Stage1:
    """One training run, from its last checkpoint to its outcome."""

    def __init__(self, inputs: Stage1Inputs, run: RunDirectory, accelerator: Accelerator) -> None:
        self.config, self.inputs, self.run_directory, self.accelerator = inputs.config, inputs, run, accelerator
        self.data = inputs.encode()
        seed_everything(self.config.seed)
        self.ranker = self._build()
        self.model = accelerator.prepare_model(self.ranker)  # moves the ranker to its device
        self.optimizer = adamw(self.ranker, self.config.optimiser)
        if accelerator.process_index:  # the same weights everywhere, another dropout
            seed_everything(self.config.seed + accelerator.process_index)
        self.checkpoints = Checkpoints(run.path / "checkpoint")
        self.progress = Progress()
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=accelerator.device)  # of this process, unsettled
        self.num_sessions = 0  # too
        self._resume()

    def run(self, on_step: OnStep | None) -> None:
        total_steps = self.config.epochs * self._steps_per_epoch
        path = self.run_directory.path / "tensorboard"
        enabled = self.accelerator.is_main_process
        with RunLog(path, total_steps=total_steps, step=self.progress.step, enabled=enabled) as log:
            while not self.progress.stopped:
                self._train_epoch(log, on_step)
                self._end_epoch(log)
        if enabled:
            self._finish()
        self.accelerator.wait_for_everyone()

    def _build(self) -> Ranker:
        dataset, store = self.inputs.dataset, self.inputs.store
        latent_dim = None if store is None else store.dim
        ranker = build_ranker(self.config.model, dataset.schema, dataset.catalog, latent_dim, self.inputs.semantic)
        if self.inputs.warm_start is not None:
            ranker.load_state_dict(self.inputs.warm_start.ranker.state_dict())
        if self.config.trained == "query" and ranker.query_tower is not None:
            ranker.requires_grad_(False)
            ranker.query_tower.requires_grad_(True)
        # After the warm start's weights: the statistics are of this run's latent queries, whichever reasoner's.
        ranker.set_statistics(self.data.clicks, self.data.latent_sample)
        if self.data.titles is not None:
            ranker.set_titles(self.data.titles)
        return ranker

    def _resume(self) -> None:
        loaded = self.checkpoints.load(self.ranker, self.optimizer)
        if loaded is None:
            return
        self.progress, randomness = loaded
        if len(randomness) != self.accelerator.num_processes:
            required = f"{len(randomness)} processes, as when the run began"
            received = str(self.accelerator.num_processes)
            raise ProvenanceError(where=str(self.run_directory.path), required=required, received=received)
        randomness[self.accelerator.process_index].restore()
        if self.accelerator.is_main_process:  # a kill may have come between the state and its copy for readers
            self.run_directory.write_history(self.progress.history)

    def _order(self) -> Order:
        return Order(
            self.config.batch_size,
            seed=self.config.seed,
            epoch=self.progress.epoch,
            shuffle=True,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        )

    @property
    def _steps_per_epoch(self) -> int:
        return self.data.train.num_steps(self._order())

    def _train_epoch(self, log: RunLog, on_step: OnStep | None) -> None:
        progress = self.progress
        clock = time.perf_counter()
        for step in self.data.train.steps(self._order(), progress.position):
            loss = self._optimise(step)
            self.loss_sum += loss.double() * len(step.rows)
            self.num_sessions += len(step.rows)
            progress.step += 1
            progress.position = step.after
            now = time.perf_counter()
            progress.seconds += now - clock
            clock = now
            log.step(progress.epoch + 1, progress.step, self._rate())
            if progress.step % SCALAR_STEPS == 0:
                log.scalars({"train/loss": float(loss), "train/sessions_per_s": self._rate()}, progress.step)
            if on_step is not None:
                on_step(progress.step)
            if progress.step % self.config.checkpoint_steps == 0:
                self._save()
                clock = time.perf_counter()

    def _optimise(self, step: Step) -> Tensor:
        """One AdamW step; the batch's loss, detached."""
        set_learning_rate(self.optimizer, self._learning_rate())
        self.model.train()
        with self._autocast():
            loss = self.model(step.sessions.to(self.accelerator.device), epoch=self.progress.epoch)
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss.total)
        torch.nn.utils.clip_grad_norm_(self.ranker.parameters(), self.config.optimiser.clip_norm)
        self.optimizer.step()
        total: Tensor = loss.total.detach()
        return total

    def _learning_rate(self) -> float:
        total_steps = self.config.epochs * self._steps_per_epoch
        return learning_rate(self.config.optimiser, self.progress.step, total_steps, self.progress.lr_factor)

    def _autocast(self) -> AbstractContextManager[Any]:
        enabled = self.config.precision == "bf16"
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=enabled)

    def _rate(self) -> float:
        """Sessions a second of this epoch on all processes, as far as this one can tell."""
        own = self.num_sessions * self.accelerator.num_processes
        return float((self.progress.num_sessions + own) / max(self.progress.seconds, 1e-9))

    def _settle(self) -> None:
        """Adds what every process has seen since the last time to the progress, which is the same on all."""
        seen = torch.stack((self.loss_sum, torch.full_like(self.loss_sum, self.num_sessions)))
        loss_sum, num_sessions = self.accelerator.reduce(seen, reduction="sum").tolist()
        if not math.isfinite(loss_sum):
            where = f"training, by step {self.progress.step}"
            raise DataError(where=where, required="a finite loss", received=f"{loss_sum} (a lower learning rate?)")
        self.progress.loss_sum += loss_sum
        self.progress.num_sessions += int(num_sessions)
        self.loss_sum.zero_()
        self.num_sessions = 0

    def _save(self) -> None:
        self._settle()
        randomness = gather_object([RandomState.capture()])
        if self.accelerator.is_main_process:
            self.checkpoints.save(self.ranker, self.optimizer, self.progress, randomness)

    def _validate(self) -> dict[str, float]:
        """Metrics of the validation sessions, each process scoring its share."""
        order = Order(EVALUATION_BATCH, rank=self.accelerator.process_index, world=self.accelerator.num_processes)
        parts = split_metrics(self.ranker, self.data.valid, order, self.accelerator.device)
        metrics = joined(gather_object(parts))
        means = {name: metrics.mean(name) for name in metrics.values}
        if math.isnan(means[self.config.metric]):
            required = f"sessions with a click, to measure {self.config.metric}"
            raise DataError(where=str(self.inputs.dataset.path / "valid"), required=required, received="none")
        return means

    def _end_epoch(self, log: RunLog) -> None:
        self._settle()
        progress, rate = self.progress, self._learning_rate()
        valid = self._validate()
        record = {
            "epoch": progress.epoch + 1,
            "train_loss": progress.loss_sum / max(progress.num_sessions, 1),
            "valid": valid,
            "lr": rate,
            "sessions_per_s": self._rate(),
            "logit_scale": float(self.ranker.lists.scale().detach()),
            "omega": float(self.ranker.omega.detach()),
            "steps": progress.step,
        }
        improved = progress.close_epoch(record, valid[self.config.metric])
        if not improved and progress.stale_epochs % self.config.optimiser.lr_patience == 0:
            progress.lr_factor *= LR_DROP
        progress.stopped = progress.epoch == self.config.epochs or progress.stale_epochs >= self.config.patience
        if improved and self.accelerator.is_main_process:
            self.checkpoints.save_best(self.ranker, progress.best_epoch)
        self._save()
        if self.accelerator.is_main_process:
            self.run_directory.write_history(progress.history)
        log.epoch(record, progress.step, self.config.metric)

    def _finish(self) -> None:
        """The best epoch's weights, the confidence of the training clicks, the numbers; then the marker."""
        self.ranker.load_state_dict(self.checkpoints.best_weights())
        store = self.inputs.store
        latents = None if store is None else store.provenance
        path = self.run_directory.path
        encoder = self.data.encoder
        save_ranker(
            path / "model", self.ranker, self.config.model, encoder, latents=latents, provenance=self.inputs.identity
        )
        if self.ranker.confidence is not None:
            confidence = click_confidence(self.ranker, self.data.train, self.config.epochs, self.accelerator.device)
            write_confidence(path / CONFIDENCE, self.inputs.dataset, confidence)
        self.run_directory.finish(self._metrics())

    def _metrics(self) -> dict[str, Any]:
        progress = self.progress
        best = progress.history[progress.best_epoch - 1]
        return {
            "metric": self.config.metric,
            "best_epoch": progress.best_epoch,
            "valid": best["valid"],
            "train_loss": best["train_loss"],
            "logit_scale": best["logit_scale"],
            "omega": best["omega"],
            "epochs": progress.epoch,
            "steps": progress.step,
            "train_sessions": len(self.data.train),
            "valid_sessions": len(self.data.valid),
            "sessions_per_s": progress.total_sessions / max(progress.total_seconds, 1e-9),
            "num_parameters": sum(parameter.numel() for parameter in self.ranker.parameters()),
            "unknown_values": self.data.unknown,
            "device": str(self.accelerator.device),
            "num_processes": self.accelerator.num_processes,
            "num_threads": torch.get_num_threads(),
        }


def seed_everything(seed: int) -> None:
    """Every generator that the state saves."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)
