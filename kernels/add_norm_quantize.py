"""Residual addition, RMSNorm and, for W8A8, per-token quantisation to 8 bits, in one pass over a row.

    r += delta,   y = r g / sqrt(mean(r^2) + eps),   codes, scale = quantize(y)

The residual stream is float32 and is changed in place; ``delta`` may be absent (a product has added it already).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rgalign.kernels.on_cpu import kernels_on_cpu
from rgalign.kernels.quantize_rows import CODES, quantize_block, quantize_rows_reference, row_warps


def add_norm_reference(
    residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    """The definition, without quantisation; ``residual`` is changed."""
    if delta is not None:
        residual += delta.float()
    scale = torch.rsqrt(residual.square().mean(dim=-1, keepdim=True) + eps)
    return (residual * scale * weight.float()).to(dtype)


def add_norm_quantize_reference(
    residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float, codes: torch.dtype = torch.int8
) -> tuple[Tensor, Tensor]:
    """The definition; ``residual`` is changed."""
    return quantize_rows_reference(add_norm_reference(residual, delta, weight, eps, torch.float32), codes)


@triton.jit
def _add_norm_kernel(
    residual_ptr,  # [T, D] float32, changed
    delta_ptr,  # [T, D]
    weight_ptr,  # [D] float32
    out_ptr,  # [T, D]: codes of 8 bits with QUANTIZE, else a float dtype
    scales_ptr,  # [T] float32, with QUANTIZE
    eps,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_DELTA: tl.constexpr,
    QUANTIZE: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    at = t * D + d
    row = tl.load(residual_ptr + at, d < D, 0.0)
    if HAS_DELTA:
        row += tl.load(delta_ptr + at, d < D, 0.0).to(tl.float32)
        tl.store(residual_ptr + at, row, d < D)
    scale = 1.0 / tl.sqrt(tl.sum(row * row, axis=0) / D + eps)
    y = row * scale * tl.load(weight_ptr + d, d < D, 0.0)
    if QUANTIZE:
        codes, step = quantize_block(y, out_ptr.dtype.element_ty)
        tl.store(out_ptr + at, codes, d < D)
        tl.store(scales_ptr + t, step)
    else:
        tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), d < D)


def _launch(
    residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    num_rows, dim = residual.shape
    out = torch.empty(num_rows, dim, dtype=dtype, device=residual.device)
    quantize = dtype in CODES
    scales = torch.empty(num_rows if quantize else 0, dtype=torch.float32, device=residual.device)
    block = triton.next_power_of_2(dim)
    _add_norm_kernel[(num_rows,)](
        residual,
        residual if delta is None else delta,
        weight,
        out,
        scales if quantize else residual,
        eps,
        D=dim,
        BLOCK_D=block,
        HAS_DELTA=delta is not None,
        QUANTIZE=quantize,
        num_warps=row_warps(block),
    )
    return out, scales


def _defined(
    residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    if dtype in CODES:
        return add_norm_quantize_reference(residual, delta, weight, eps, dtype)
    return add_norm_reference(residual, delta, weight, eps, dtype), residual.new_empty(0)


SCHEMA = "(Tensor(a!) residual, Tensor? delta, Tensor weight, float eps, ScalarType dtype) -> (Tensor, Tensor)"


@torch.library.custom_op("rgalign::add_norm", mutates_args=("residual",), device_types="cuda", schema=SCHEMA)
def _op(
    residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return _launch(residual, delta, weight, eps, dtype)


@_op.register_kernel("cpu")
def _on_cpu(
    residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return (_launch if kernels_on_cpu() else _defined)(residual, delta, weight, eps, dtype)


@_op.register_fake
def _fake(
    residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    scales = residual.shape[0] if dtype in CODES else 0
    return torch.empty_like(residual, dtype=dtype), residual.new_empty(scales)


def add_norm(residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Adds and normalises.

    Args:
        residual: [T, D] float32, T at least 1, contiguous; changed in place.
        delta: [T, D] of a float dtype, contiguous; None adds nothing.
        weight: [D] float32.
        dtype: of what is returned.

    Returns:
        [T, D].

    Raises:
        ValueError: a shape, dtype or stride that is not that.
    """
    _check(residual, delta, weight)
    out: Tensor = _op(residual, delta, weight, eps, dtype)[0]
    return out


def add_norm_quantize(
    residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float, codes: torch.dtype = torch.int8
) -> tuple[Tensor, Tensor]:
    """As :func:`add_norm`, then codes [T, D] (int8 or float8_e4m3fn) and scales [T] float32 of what it returns."""
    _check(residual, delta, weight)
    values, scales = _op(residual, delta, weight, eps, codes)
    return values, scales


def _check(residual: Tensor, delta: Tensor | None, weight: Tensor) -> None:
    fits = residual.dim() == 2 and residual.numel() > 0 and weight.shape == residual.shape[1:]
    fits = fits and (delta is None or (delta.shape == residual.shape and delta.is_contiguous()))
    if not fits or not residual.is_contiguous() or {residual.dtype, weight.dtype} != {torch.float32}:
        received = f"{tuple(residual.shape)} {residual.dtype}, {None if delta is None else tuple(delta.shape)}"
        required = "required contiguous residual [T, D] and delta of one shape, weight [D], float32"
        raise ValueError(f"add_norm: {required}; received {received}, weight {tuple(weight.shape)} {weight.dtype}")
