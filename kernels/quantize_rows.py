"""Rows to 8-bit codes with a scale each:  codes = round(x L / max|x|) (ties to even),  scale = max|x| / L.

L is 127 for int8 and 448 for e4m3. What csrc/engine calls ``quantize``; the input of a product of 8 bits where no norm
or SwiGLU goes before it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rgalign.kernels.on_cpu import kernels_on_cpu

FP8 = torch.float8_e4m3fn
CODES = {torch.int8: 127.0, FP8: 448.0}  # dtype of codes -> L
# 1.5 * 2^23: adding it leaves a float32 below 2^22 no bits after the point: the sum is rounded to an integer,
# ties to even.
ROUNDING = tl.constexpr(12582912.0)


def quantize_rows_reference(x: Tensor, codes: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """The definition. Args: x: [T, D]. Returns: [T, D] codes and [T] float32; a row of zeros has codes and scale 0."""
    x, levels = x.float(), CODES[codes]
    peak = x.abs().amax(dim=-1)
    scaled = x * torch.where(peak > 0, levels / peak, 0.0)[:, None]
    return (scaled.round() if codes == torch.int8 else scaled.clamp(-levels, levels)).to(codes), peak / levels


@triton.jit
def quantize_block(x, DTYPE: tl.constexpr):
    """[BLOCK] float32 -> codes of type DTYPE and the scale; what is masked must be 0."""
    INT8: tl.constexpr = tl.int8 == DTYPE
    LEVELS: tl.constexpr = 127.0 if INT8 else 448.0
    peak = tl.max(tl.abs(x), axis=0)
    scaled = x * tl.where(peak > 0, LEVELS / tl.where(peak > 0, peak, 1.0), 0.0)
    if INT8:
        scaled = (scaled + ROUNDING) - ROUNDING
    else:
        scaled = tl.minimum(tl.maximum(scaled, -LEVELS), LEVELS)
    return scaled.to(DTYPE), peak / LEVELS


@triton.jit
def _quantize_rows_kernel(
    x_ptr,  # [T, D], rows ROW_STRIDE apart
    codes_ptr,  # [T, D] int8 or e4m3
    scales_ptr,  # [T] float32
    ROW_STRIDE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    x = tl.load(x_ptr + t * ROW_STRIDE + d, d < D, 0.0).to(tl.float32)
    codes, scale = quantize_block(x, codes_ptr.dtype.element_ty)
    tl.store(codes_ptr + t * D + d, codes, d < D)
    tl.store(scales_ptr + t, scale)


def row_warps(block: int) -> int:
    """Warps of a program that holds one row of ``block`` values: 16 to 32 values a thread."""
    return max(1, min(16, block // 512))


def _launch(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    num_rows, dim = x.shape
    codes = torch.empty(num_rows, dim, dtype=dtype, device=x.device)
    scales = torch.empty(num_rows, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(dim)
    _quantize_rows_kernel[(num_rows,)](
        x, codes, scales, ROW_STRIDE=x.stride(0), D=dim, BLOCK_D=block, num_warps=row_warps(block)
    )
    return codes, scales


SCHEMA = "(Tensor x, ScalarType dtype) -> (Tensor, Tensor)"


@torch.library.custom_op("rgalign::quantize_rows", mutates_args=(), device_types="cuda", schema=SCHEMA)
def _op(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return _launch(x, dtype)


@_op.register_kernel("cpu")
def _on_cpu(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return (_launch if kernels_on_cpu() else quantize_rows_reference)(x, dtype)


@_op.register_fake
def _fake(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, dtype=dtype), x.new_empty(x.shape[0], dtype=torch.float32)


def quantize_rows(x: Tensor, codes: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """Codes of 8 bits and a scale per row.

    Args:
        x: [T, D] of a float dtype, T at least 1, last dimension contiguous.
        codes: int8, or float8_e4m3fn on a GPU that has it.

    Returns:
        codes [T, D] and scales [T] float32.

    Raises:
        ValueError: a shape or stride that is not that.
    """
    if x.dim() != 2 or not x.numel() or x.stride(1) != 1:
        raise ValueError(f"quantize_rows: required a filled [T, D] with contiguous rows; received {tuple(x.shape)}")
    values, scales = _op(x, codes)
    return values, scales
