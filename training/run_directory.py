"""Run directory: one folder a training run, tied to its inputs.

    run/
      config.yaml  inputs.json   what is asked for and the hashes of what it is made from
      checkpoint/                the newest state, see trainer_state.py; gone once the run is done
      history.jsonl              one line a finished epoch
      tensorboard/
      model/  metrics.json       the outcome
      done                       marker, written last

A run may be started any number of times: finished with the same inputs it is skipped, interrupted it goes on, with
other inputs it is refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rgalign.config import Config, dump_config
from rgalign.errors import ProvenanceError
from rgalign.files import read_json, write_atomic, write_json

INPUTS, DONE, METRICS, HISTORY = "inputs.json", "done", "metrics.json", "history.jsonl"
CONFIDENCE = "confidence.parquet"  # of a ranker with confidence weights


class RunDirectory:
    """One run. Its files are its state; there is no other."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @property
    def is_done(self) -> bool:
        return (self.path / DONE).is_file()

    def require(self, inputs: Mapping[str, Any]) -> None:
        """Refuses to mix two runs.

        Raises:
            ProvenanceError: the directory holds a run of other inputs, or something that is no run.
        """
        if self._is_empty():
            return
        if not (self.path / INPUTS).is_file():
            required = "an empty directory or one of this command's runs"
            raise ProvenanceError(where=str(self.path), required=required, received=f"a directory without {INPUTS}")
        recorded = _flat(read_json(self.path / INPUTS))
        wanted = _flat(inputs)
        for key in sorted(set(recorded) | set(wanted)):
            if recorded.get(key) != wanted.get(key):
                required = f"{key} {recorded.get(key)!r}, as when the run began (--restart begins a fresh run)"
                raise ProvenanceError(where=str(self.path), required=required, received=repr(wanted.get(key)))

    def _is_empty(self) -> bool:
        """Hidden files do not count: a kill during the first write leaves a temporary one."""
        return not self.path.exists() or all(path.name.startswith(".") for path in self.path.iterdir())

    def begin(self, inputs: Mapping[str, Any], config: Config) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / INPUTS, inputs)
        dump_config(config, self.path / "config.yaml")

    def clear(self) -> None:
        """Removes a run, marker first, so that a kill midway leaves nothing that looks finished.

        Raises:
            ProvenanceError: the directory is not a run; nothing is removed.
        """
        if self._is_empty():
            return
        if not (self.path / INPUTS).is_file():
            required = "one of this command's runs to restart"
            raise ProvenanceError(where=str(self.path), required=required, received=f"a directory without {INPUTS}")
        (self.path / DONE).unlink(missing_ok=True)
        for name in ("checkpoint", "tensorboard", "model"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in (METRICS, HISTORY, CONFIDENCE, "config.yaml", INPUTS):
            (self.path / name).unlink(missing_ok=True)

    def write_history(self, records: Sequence[Mapping[str, Any]]) -> None:
        lines = "".join(json.dumps(record) + "\n" for record in records)
        write_atomic(self.path / HISTORY, lines.encode())

    def finish(self, metrics: Mapping[str, Any]) -> None:
        write_json(self.path / METRICS, metrics)
        write_atomic(self.path / DONE, b"")
        # After the marker: killed before it, the run must find its last state again.
        shutil.rmtree(self.path / "checkpoint", ignore_errors=True)

    def metrics(self) -> dict[str, Any]:
        metrics: dict[str, Any] = read_json(self.path / METRICS)
        return metrics


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots, so that an error can name one. JSON's view: tuples are lists."""
    flat: dict[str, Any] = {}
    for key, value in json.loads(json.dumps(values)).items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
