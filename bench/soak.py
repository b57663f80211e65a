"""The stresses' sizes: reduced in the suite; whole in `make soak` (RGALIGN_SOAK=1), which keeps a summary of each."""

from __future__ import annotations

import os
from typing import Any

from rgalign.bench.rows import RESULTS, row
from rgalign.files import write_json

WHOLE = bool(os.environ.get("RGALIGN_SOAK"))


def size(reduced: int, whole: int) -> int:
    return whole if WHOLE else reduced


def summarise(name: str, **found: Any) -> None:
    """To bench/results/NAME.json; nothing of a reduced run."""
    if WHOLE:
        write_json(RESULTS / f"{name}.json", row(name, **found))
