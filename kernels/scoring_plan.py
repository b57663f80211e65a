"""How a scoring call is cut into programs: a function of sizes and device alone, so one CUDA graph serves a bucket."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import triton

MAX_K = 64
MAX_DIM = 512
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Bytes of catalogue and W up to which one launch is planned: what one SM reads in about the time of two launches.
ONE_LAUNCH_BYTES = 1 << 18
SCANS_PER_SM = 2
MAX_MERGED = 8192  # list entries that one merging program holds
TILE_BYTES = 16 << 10


@dataclass(frozen=True)
class Plan:
    """How a call is cut up; a function of sizes and device only."""

    one_launch: bool
    block_b: int
    block_n: int
    block_d: int
    num_splits: int
    rows_per_split: int
    num_warps: int
    num_stages: int


def tile_rows(capability: int) -> int:
    """Rows of the catalogue that one tile may hold on a GPU of this compute capability (90 for 9.0)."""
    # From 64 rows on, Blackwell's products live in tensor memory, and Triton 3.7.1 fails to compile a maximum over them
    # ("parent layout must have at least rank >= 2"). Smaller tiles go to the tensor cores by mma.sync.
    return 32 if capability >= 100 else 128


def plan(
    num_sessions: int, num_rows: int, dim: int, hidden: int, k: int, itemsize: int, num_sms: int, largest_tile: int
) -> Plan:
    """Args: itemsize: bytes of one stored value; hidden: 0 without latent queries; largest_tile: ``tile_rows``."""
    block_d = max(16, triton.next_power_of_2(dim))
    one_launch = num_rows * dim * itemsize + dim * hidden * 4 <= ONE_LAUNCH_BYTES
    block_b = min(16 if one_launch else 64, max(16, triton.next_power_of_2(num_sessions)))
    block_n = max(32, min(largest_tile, TILE_BYTES // (block_d * itemsize)))
    blocks = triton.cdiv(num_sessions, block_b)
    num_splits = min(triton.cdiv(SCANS_PER_SM * num_sms, blocks), triton.cdiv(num_rows, block_n), MAX_MERGED // k)
    rows_per_split = triton.cdiv(triton.cdiv(num_rows, num_splits), block_n) * block_n
    return Plan(
        one_launch=one_launch,
        block_b=block_b,
        block_n=block_n,
        block_d=block_d,
        num_splits=triton.cdiv(num_rows, rows_per_split),
        rows_per_split=rows_per_split,
        num_warps=8 if block_b * block_n >= 8192 else 4,
        num_stages=2 if one_launch or block_n * block_d * itemsize > TILE_BYTES else 3,
    )


def arithmetic_of(dtype: torch.dtype) -> str:
    """What the scan multiplies in; the interpreter's bfloat16 product is wrong, and it has no TF32."""
    if INTERPRETED:
        return "float16" if dtype in (torch.float16, torch.int8) else "ieee"
    return {torch.float16: "float16", torch.int8: "float16", torch.bfloat16: "bfloat16"}.get(dtype, "tf32x3")
