"""What both trainers share: checkpoints that are marked once whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rgalign.training.alignment.whole_checkpoints import mark_whole


class MarkedCheckpoints:
    """Mixed in before a transformers trainer."""

    args: Any
    state: Any
    accelerator: Any

    def evaluate(self, *args: Any, **arguments: Any) -> Any:
        """Leaves the random state as it was: a resumed run does not repeat measurements before its checkpoint."""
        with torch.random.fork_rng():
            return super().evaluate(*args, **arguments)  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            mark_whole(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")
