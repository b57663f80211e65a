"""A trainer's log as curves: TensorBoard, a progress bar with ETA, and the check that the loss stays finite."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from rgalign.errors import DataError
from rgalign.training.run_log import RunLog

OnStep = Callable[[int], None]


class Curves(TrainerCallback):
    """Args: sessions_per_step: over all processes; on_step: called after each optimiser step."""

    def __init__(self, log: RunLog, *, sessions_per_step: int, on_step: OnStep | None = None) -> None:
        self._log = log
        self._per_step = sessions_per_step
        self._on_step = on_step
        self._began = time.perf_counter()
        self._first: int | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._first is None:
            self._first, self._began = state.global_step, time.perf_counter()
        done = (state.global_step - self._first) * self._per_step
        rate = done / max(time.perf_counter() - self._began, 1e-9)
        self._log.step(int(state.epoch or 0) + 1, state.global_step, rate)
        if self._on_step is not None:
            self._on_step(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        numbers = {name: float(value) for name, value in (logs or {}).items() if isinstance(value, int | float)}
        for name in ("loss", "eval_loss"):
            if not math.isfinite(numbers.get(name, 0.0)):
                required, received = "a finite loss", f"{name} {numbers[name]} (a lower learning rate?)"
                raise DataError(where=f"alignment, step {state.global_step}", required=required, received=received)
        self._log.scalars({curve_name(name): value for name, value in numbers.items()}, state.global_step)


def curve_name(name: str) -> str:
    """TensorBoard's tag: held-out measurements apart from those of training steps."""
    return f"held_out/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
