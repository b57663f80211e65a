"""What an operation does on CPU tensors: its definition, or, within ``interpreted()``, its Triton kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rgalign.kernels.scoring_plan import INTERPRETED

_kernels = False


def kernels_on_cpu() -> bool:
    return _kernels


@contextmanager
def interpreted() -> Iterator[None]:
    """Operations on CPU tensors run their kernels in Triton's interpreter: for tests and ``--dry`` runs.

    Raises:
        RuntimeError: TRITON_INTERPRET was not 1 when the kernels were imported.
    """
    global _kernels
    if not INTERPRETED:
        raise RuntimeError("interpreted(): required TRITON_INTERPRET=1 before Triton is imported; received none")
    _kernels = True
    try:
        yield
    finally:
        _kernels = False
