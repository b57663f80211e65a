"""The closed loop in one command: every step that is not done yet, in order, in a run directory.

    run/config.yaml  run/<step>/...      see step.py and graph.py

A kill at any point continues with the same command. After a change of the configuration, of the dataset or of a model,
exactly the steps that read what changed are done anew, and those whose inputs come out different because of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState

from rgalign.config import dump_config
from rgalign.errors import ConfigError, ProvenanceError
from rgalign.training.loop.graph import steps
from rgalign.training.loop.loop_config import LoopConfig
from rgalign.training.loop.readiness import require_ready
from rgalign.training.loop.step import Step, StepFolder

CONFIG = "config.yaml"
Announce = Callable[[str, str], None]
OnLoopStep = Callable[[str, int], None]


def run_loop(
    config: LoopConfig,
    out: Path,
    *,
    announce: Announce = lambda step, what: None,
    on_step: OnLoopStep | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Runs the loop, goes on with it, or returns a finished one's comparison of the arms.

    Args:
        announce: called with each step's name and ``done`` (skipped), ``to do``, ``interrupted`` or ``outdated``.
        on_step: called after each optimiser step of a step that trains, with its name and the steps taken.

    Returns:
        What ``evaluate/out/report.json`` holds, see :func:`~rgalign.training.loop.arms.evaluate_arms`.

    Raises:
        ConfigError: several processes.
        ProvenanceError: ``out`` holds something that is no loop's run.
        RgalignError: from a step that cannot run, before any does, or from one that stops. The run stays; the
            same command goes on once the cause is gone.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        required = "one process (a single step may be run by a launcher before, see docs/loop.md)"
        raise ConfigError(where="train all", required=required, received=f"WORLD_SIZE {os.environ['WORLD_SIZE']}")
    root = Path(out).resolve()
    _require_loop(root)
    semantic = None if config.semantic is None else config.semantic.resolve()
    config = config.model_copy(update={"dataset": config.dataset.resolve(), "semantic": semantic})
    require_ready(steps(config, root), root)
    dump_config(config, root / CONFIG)
    outcomes: dict[str, Any] = {}
    folder = StepFolder(root)
    for step in steps(config, root, progress=progress):
        folder = StepFolder(root / step.name)
        inputs = step_inputs(step, outcomes)
        state = folder.state(inputs)
        announce(step.name, state)
        if state != "done":
            # Accelerate keeps one setting of precision and device for the life of the process; each step has its own.
            AcceleratorState._reset_state(reset_partial_state=True)
            folder.complete(step, inputs, None if on_step is None else _named(on_step, step.name))
        outcomes[step.name] = folder.outcome()
    result: dict[str, Any] = folder.metrics()["result"]
    return result


def step_inputs(step: Step, outcomes: dict[str, Any]) -> dict[str, Any]:
    """All that decides a step's result."""
    return {
        "settings": dict(step.settings),
        "files": dict(step.files()),
        "steps": {name: outcomes[name] for name in step.after},
    }


def _require_loop(root: Path) -> None:
    strangers = root.exists() and any(not path.name.startswith(".") for path in root.iterdir())
    if strangers and not (root / CONFIG).is_file():
        required = "an empty directory or one of this command's runs"
        raise ProvenanceError(where=str(root), required=required, received=f"a directory without {CONFIG}")


def _named(on_step: OnLoopStep, name: str) -> Callable[[int], None]:
    return lambda taken: on_step(name, taken)
