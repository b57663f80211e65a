"""The LM head at the positions that a loss reads, and at no others.

TRL scores only the supervised positions where it has Triton, and all of them elsewhere, for compilers that want fixed
shapes. A prompt of 250 tokens before a query of ten then costs 25 times the head: on a CPU more than all else.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from rgalign.training.alignment.trl_parts import replaced

DECIDES = "_use_triton"  # in TRL 1.16; the kernels ask their own module's function, which stays as it is


def supervised_positions_only() -> AbstractContextManager[None]:
    """TRL's fused LM head skips what no label asks for, on every device."""
    return replaced(DECIDES, lambda given: lambda device: True)
