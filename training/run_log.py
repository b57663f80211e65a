"""What a person sees of a training run: a progress bar with rate and ETA, TensorBoard curves, one line an epoch."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)


class RunLog:
    """The log of one process; ``enabled=False`` (all ranks but the first) writes nothing.

    Args:
        path: directory of TensorBoard's event files.
        total_steps: steps of all epochs, if training is not stopped early.
        step: steps done before this process began; later events of a killed run are hidden.
    """

    def __init__(self, path: Path, *, total_steps: int, step: int, enabled: bool) -> None:
        self.enabled = enabled
        self._writer = SummaryWriter(str(path), purge_step=step) if enabled else None
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not (enabled and console.is_terminal),
        )
        self._task = self._bar.add_task("epoch 1", total=total_steps, completed=step, rate="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._writer is not None:
            self._writer.close()

    def step(self, epoch: int, step: int, sessions_per_s: float) -> None:
        self._bar.update(
            self._task, description=f"epoch {epoch}", completed=step, rate=f"{sessions_per_s:,.0f} sessions/s"
        )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def epoch(self, record: Mapping[str, Any], step: int, metric: str) -> None:
        """One line for the reader with the metric that decides, all numbers for TensorBoard."""
        if not self.enabled:
            return
        numbers = {f"epoch/{name}": value for name, value in record.items() if isinstance(value, int | float)}
        self.scalars(numbers | {f"valid/{name}": value for name, value in record["valid"].items()}, step)
        line = "epoch %d  loss %.4f  valid %s %.4f  lr %.1e  %.0f sessions/s"
        value, rate = record["valid"][metric], record["sessions_per_s"]
        logger.info(line, record["epoch"], record["train_loss"], metric, value, record["lr"], rate)
