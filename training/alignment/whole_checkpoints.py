"""Checkpoints of the trainers that a kill midway cannot spoil: TRL's own, and a marker once all processes have written.

A checkpoint without its marker is removed before a run goes on. The two newest stay, so that one is always whole.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from rgalign.files import write_atomic

WHOLE = "whole"
KEPT = 2


def mark_whole(checkpoint: Path) -> None:
    write_atomic(checkpoint / WHOLE, b"")


def newest_whole(directory: Path) -> Path | None:
    """The checkpoint to go on from."""
    whole = [path for path in directory.glob("checkpoint-*") if (path / WHOLE).is_file()]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def remove_torn(directory: Path) -> None:
    for path in directory.glob("checkpoint-*"):
        if not (path / WHOLE).is_file():
            shutil.rmtree(path)
