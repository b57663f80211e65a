"""SwiGLU of a fused gate-up product and, for W8A8, per-token quantisation to 8 bits, in one pass over a row.

    y = gate / (1 + exp(-gate)) * up,   codes, scale = quantize(y)

Columns of ``gate_up`` are interleaved as engine artefacts store them: HALF of the gate, the same HALF of up, in turn.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rgalign.kernels.on_cpu import kernels_on_cpu
from rgalign.kernels.quantize_rows import CODES, quantize_block, quantize_rows_reference, row_warps

HALF = tl.constexpr(8)


def swiglu_reference(gate_up: Tensor, dtype: torch.dtype) -> Tensor:
    """The definition, without quantisation."""
    gate, up = gate_up.float().reshape(len(gate_up), -1, 2, 8).unbind(dim=2)
    return (torch.nn.functional.silu(gate) * up).reshape(len(gate_up), -1).to(dtype)


def swiglu_quantize_reference(gate_up: Tensor, codes: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """The definition."""
    return quantize_rows_reference(swiglu_reference(gate_up, torch.float32), codes)


@triton.jit
def _swiglu_kernel(
    gate_up_ptr,  # [T, 2 I]
    out_ptr,  # [T, I]: codes of 8 bits with QUANTIZE, else a float dtype
    scales_ptr,  # [T] float32, with QUANTIZE
    INTERMEDIATE: tl.constexpr,
    BLOCK_I: tl.constexpr,
    QUANTIZE: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK_I)
    at = gate_up_ptr + t * (2 * INTERMEDIATE) + i // HALF * (2 * HALF) + i % HALF
    gate = tl.load(at, i < INTERMEDIATE, 0.0).to(tl.float32)
    up = tl.load(at + HALF, i < INTERMEDIATE, 0.0).to(tl.float32)
    y = gate / (1.0 + tl.exp(-gate)) * up
    if QUANTIZE:
        codes, step = quantize_block(y, out_ptr.dtype.element_ty)
        tl.store(out_ptr + t * INTERMEDIATE + i, codes, i < INTERMEDIATE)
        tl.store(scales_ptr + t, step)
    else:
        tl.store(out_ptr + t * INTERMEDIATE + i, y.to(out_ptr.dtype.element_ty), i < INTERMEDIATE)


def _launch(gate_up: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    num_rows, width = gate_up.shape
    quantize = dtype in CODES
    out = torch.empty(num_rows, width // 2, dtype=dtype, device=gate_up.device)
    scales = torch.empty(num_rows if quantize else 0, dtype=torch.float32, device=gate_up.device)
    block = triton.next_power_of_2(width // 2)
    _swiglu_kernel[(num_rows,)](
        gate_up,
        out,
        scales if quantize else gate_up,
        INTERMEDIATE=width // 2,
        BLOCK_I=block,
        QUANTIZE=quantize,
        num_warps=row_warps(block),
    )
    return out, scales


def _defined(gate_up: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    if dtype in CODES:
        return swiglu_quantize_reference(gate_up, dtype)
    return swiglu_reference(gate_up, dtype), gate_up.new_empty(0, dtype=torch.float32)


SCHEMA = "(Tensor gate_up, ScalarType dtype) -> (Tensor, Tensor)"


@torch.library.custom_op("rgalign::swiglu", mutates_args=(), device_types="cuda", schema=SCHEMA)
def _op(gate_up: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return _launch(gate_up, dtype)


@_op.register_kernel("cpu")
def _on_cpu(gate_up: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return (_launch if kernels_on_cpu() else _defined)(gate_up, dtype)


@_op.register_fake
def _fake(gate_up: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    num_rows, width = gate_up.shape
    scales = gate_up.new_empty(num_rows if dtype in CODES else 0, dtype=torch.float32)
    return gate_up.new_empty(num_rows, width // 2, dtype=dtype), scales


def swiglu(gate_up: Tensor, dtype: torch.dtype) -> Tensor:
    """SwiGLU.

    Args:
        gate_up: [T, 2 I] of a float dtype, contiguous, T at least 1, interleaved by HALF columns; I a multiple of it.
        dtype: of what is returned.

    Returns:
        [T, I].

    Raises:
        ValueError: a shape or stride that is not that.
    """
    _check(gate_up)
    out: Tensor = _op(gate_up, dtype)[0]
    return out


def swiglu_quantize(gate_up: Tensor, codes: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """As :func:`swiglu`, then codes [T, I] (int8 or float8_e4m3fn) and scales [T] float32 of what it returns."""
    _check(gate_up)
    values, scales = _op(gate_up, codes)
    return values, scales


def _check(gate_up: Tensor) -> None:
    if gate_up.dim() != 2 or not gate_up.numel() or gate_up.shape[1] % 16 or not gate_up.is_contiguous():
        required = "required a filled, contiguous [T, 2 I], I a multiple of 8"
        raise ValueError(f"swiglu: {required}; received {tuple(gate_up.shape)}, strides {gate_up.stride()}")
