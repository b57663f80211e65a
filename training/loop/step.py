"""One step of the loop and its folder.

    step/inputs.json     settings, hashes of outside files, outcomes of the steps it reads
    step/config.yaml     the step's own configuration, with all paths
    step/out/            what the step's command writes with ``-o``
    step/clock.json      seconds spent, over all interruptions; those before a SIGKILL are not known
    step/metrics.json    seconds, outcome, result
    step/done            marker, written last

A finished step of the same inputs is skipped, an interrupted one goes on, one of other inputs is done anew.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rgalign.config import Config
from rgalign.files import discard, read_json, write_json
from rgalign.room_on_disk import room_on_disk
from rgalign.training.run_directory import DONE, INPUTS, METRICS, RunDirectory

OUT, CLOCK = "out", "clock.json"
State = Literal["done", "interrupted", "outdated", "to do"]
OnStep = Callable[[int], None]


@dataclass(frozen=True)
class Step:
    """What a step does and what decides its result.

    Args:
        name: its folder below the run's, such as ``round1/sft``.
        config: dumped to the folder; it has the paths, which decide nothing.
        settings: what of the configuration decides the result.
        after: the steps whose outcomes it reads.
        run: writes ``out`` and returns what there is to say of it; called again after an interruption.
        outcome: identifies by content what later steps read of ``out``.
        files: hashes of what it reads from outside the run; reads the disk.
        ready: raises what ``run`` would stop at for want of something that no earlier step makes.
        parts_of: None: ``out`` is thrown away when inputs change. Else ``out`` has parts addressed by what they are
            made of, which only a change of these steps' outcomes makes useless.
    """

    name: str
    config: Config
    settings: Mapping[str, Any]
    after: tuple[str, ...]
    run: Callable[[Path, OnStep | None], Mapping[str, Any]]
    outcome: Callable[[Path], Any]
    files: Callable[[], Mapping[str, Any]] = field(default=dict)
    ready: Callable[[], None] = lambda: None
    parts_of: tuple[str, ...] | None = None


class StepFolder:
    """A step on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.out = path / OUT
        self._run = RunDirectory(path)

    @property
    def is_done(self) -> bool:
        return self._run.is_done

    def recorded(self) -> dict[str, Any] | None:
        """The inputs it was last begun with."""
        file = self.path / INPUTS
        return read_json(file) if file.is_file() else None

    def state(self, inputs: Mapping[str, Any]) -> State:
        recorded = self.recorded()
        if recorded is None:
            return "to do"
        if recorded != json.loads(json.dumps(inputs)):
            return "outdated"
        return "done" if self.is_done else "interrupted"

    def metrics(self) -> dict[str, Any]:
        return self._run.metrics()

    def outcome(self) -> Any:
        return self.metrics()["outcome"]

    @property
    def seconds(self) -> float:
        file = self.path / CLOCK
        return float(read_json(file)["seconds"]) if file.is_file() else 0.0

    def complete(self, step: Step, inputs: Mapping[str, Any], on_step: OnStep | None) -> None:
        """Begins or goes on with the step; what it raises leaves the folder to be continued."""
        if self.state(inputs) == "outdated":
            self._renew(step, inputs)
        self._run.begin(inputs, step.config)
        spent, began = self.seconds, time.perf_counter()
        with room_on_disk(self.path):
            try:
                result = step.run(self.out, on_step)
            finally:
                spent += time.perf_counter() - began
                with suppress(OSError):  # on a full disk the time is lost, not the error
                    write_json(self.path / CLOCK, {"seconds": spent})
            self._run.finish({"seconds": spent, "outcome": step.outcome(self.out), "result": dict(result)})

    def _renew(self, step: Step, inputs: Mapping[str, Any]) -> None:
        """Marker first, ``out`` by renaming: a kill midway leaves nothing that looks like part of a result."""
        before = self.recorded()
        assert before is not None, "an outdated step has been begun"
        for name in (DONE, METRICS, CLOCK):
            (self.path / name).unlink(missing_ok=True)
        parts = step.parts_of
        if parts is None or any(before["steps"].get(name) != inputs["steps"][name] for name in parts):
            discard(self.out)
