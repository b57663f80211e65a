"""The LM head at the positions that a loss reads, and at no others.

TRL scores only the supervised positions where it has Triton, and all of them elsewhere, for compilers that want fixed
shapes. A prompt of 250 tokens before a query of ten then costs 25 times the head: on a CPU more than all else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from trl.trainer import utils

DECIDES = "_use_triton"  # in TRL 1.16; the kernels ask their own module's function, which stays as it is


@contextmanager
def supervised_positions_only() -> Iterator[None]:
    """TRL's fused LM head skips what no label asks for, on every device. A TRL without that switch stays as it is."""
    decides = getattr(utils, DECIDES, None)
    if decides is None:
        yield
        return
    setattr(utils, DECIDES, lambda device: True)
    try:
        yield
    finally:
        setattr(utils, DECIDES, decides)
