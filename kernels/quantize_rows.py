"""Rows to int8 codes with a scale each:  codes = round(x 127 / max|x|) (ties to even),  scale = max|x| / 127.

What csrc/engine calls ``quantize``; the input of the W8A8 product where no norm or SwiGLU goes before it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rgalign.kernels.on_cpu import kernels_on_cpu

LEVELS = tl.constexpr(127.0)
# 1.5 * 2^23: adding it leaves a float32 below 2^22 no bits after the point: the sum is rounded to an integer,
# ties to even.
ROUNDING = tl.constexpr(12582912.0)


def quantize_rows_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """The definition. Args: x: [T, D]. Returns: [T, D] int8 and [T] float32; a row of zeros has codes and scale 0."""
    x = x.float()
    peak = x.abs().amax(dim=-1)
    inverse = torch.where(peak > 0, 127.0 / peak, 0.0)
    return (x * inverse[:, None]).round().to(torch.int8), peak / 127.0


@triton.jit
def quantize_block(x):
    """[BLOCK] float32 -> codes int8 and the scale; what is masked must be 0."""
    peak = tl.max(tl.abs(x), axis=0)
    inverse = tl.where(peak > 0, LEVELS / tl.where(peak > 0, peak, 1.0), 0.0)
    return ((x * inverse + ROUNDING) - ROUNDING).to(tl.int8), peak / LEVELS


@triton.jit
def _quantize_rows_kernel(
    x_ptr,  # [T, D], rows ROW_STRIDE apart
    codes_ptr,  # [T, D] int8
    scales_ptr,  # [T] float32
    ROW_STRIDE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    codes, scale = quantize_block(tl.load(x_ptr + t * ROW_STRIDE + d, d < D, 0.0).to(tl.float32))
    tl.store(codes_ptr + t * D + d, codes, d < D)
    tl.store(scales_ptr + t, scale)


def row_warps(block: int) -> int:
    """Warps of a program that holds one row of ``block`` values: 16 to 32 values a thread."""
    return max(1, min(16, block // 512))


def _launch(x: Tensor) -> tuple[Tensor, Tensor]:
    num_rows, dim = x.shape
    codes = torch.empty(num_rows, dim, dtype=torch.int8, device=x.device)
    scales = torch.empty(num_rows, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(dim)
    _quantize_rows_kernel[(num_rows,)](
        x, codes, scales, ROW_STRIDE=x.stride(0), D=dim, BLOCK_D=block, num_warps=row_warps(block)
    )
    return codes, scales


SCHEMA = "(Tensor x) -> (Tensor, Tensor)"


@torch.library.custom_op("rgalign::quantize_rows", mutates_args=(), device_types="cuda", schema=SCHEMA)
def _op(x: Tensor) -> tuple[Tensor, Tensor]:
    return _launch(x)


@_op.register_kernel("cpu")
def _on_cpu(x: Tensor) -> tuple[Tensor, Tensor]:
    return (_launch if kernels_on_cpu() else quantize_rows_reference)(x)


@_op.register_fake
def _fake(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, dtype=torch.int8), x.new_empty(x.shape[0], dtype=torch.float32)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Int8 codes and a scale per row.

    Args:
        x: [T, D] of a float dtype, T at least 1, last dimension contiguous.

    Returns:
        codes [T, D] int8 and scales [T] float32.

    Raises:
        ValueError: a shape or stride that is not that.
    """
    if x.dim() != 2 or not x.numel() or x.stride(1) != 1:
        raise ValueError(f"quantize_rows: required a filled [T, D] with contiguous rows; received {tuple(x.shape)}")
    codes, scales = _op(x)
    return codes, scales
