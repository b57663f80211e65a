"""Sizes of a decoder; a module of its own, since it is read where there is neither safetensors nor a hub client."""

from __future__ import annotations

from dataclasses import dataclass

LAYOUT = 8  # columns of the gate, then as many of up, in turn: csrc/engine/kernels.h


@dataclass(frozen=True)
class DecoderConfig:
    """What csrc/engine/model.h calls ModelShape, and what limits a prompt."""

    num_layers: int
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    rope_scale: float
    qk_norm: bool
    vocabulary: int
    max_positions: int
