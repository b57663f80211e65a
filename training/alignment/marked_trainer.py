"""What both trainers share: checkpoints that are marked once whole, and the order of the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rgalign.training.alignment.sorted_steps import SortedSteps, row_length
from rgalign.training.alignment.whole_checkpoints import mark_whole


class MarkedCheckpoints:
    """Mixed in before a transformers trainer."""

    args: Any
    state: Any
    accelerator: Any
    train_dataset: Any

    def _get_train_sampler(self, train_dataset: Any = None) -> SortedSteps:
        rows = self.train_dataset if train_dataset is None else train_dataset
        micro_batches = self.args.gradient_accumulation_steps * self.accelerator.num_processes
        rows_per_step = self.args.per_device_train_batch_size * micro_batches
        return SortedSteps([row_length(row) for row in rows], rows_per_step, self.args.seed)

    def evaluate(self, *args: Any, **arguments: Any) -> Any:
        """Leaves the random state as it was: a resumed run does not repeat measurements before its checkpoint."""
        with torch.random.fork_rng():
            return super().evaluate(*args, **arguments)  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            mark_whole(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")
