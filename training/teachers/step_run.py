"""Opening the run directory of a step whose parts outlive a restart: answers, fold rankers, latent queries.

They are addressed by what they are made of, so a restart redoes the step and keeps the parts that still fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rgalign.config import Config
from rgalign.training.run_directory import DONE, INPUTS, RunDirectory


def open_step(run: RunDirectory, inputs: Mapping[str, Any], config: Config, *, restart: bool) -> bool:
    """Whether there is work to do: False for a finished run of the same inputs.

    Raises:
        ProvenanceError: the directory holds a run of other inputs (without ``restart``), or what is no run.
    """
    if not restart or not (run.path / INPUTS).is_file():
        run.require(inputs)
    if restart:
        (run.path / DONE).unlink(missing_ok=True)
    if run.is_done:
        return False
    run.begin(inputs, config)
    return True
