"""A weight matrix and its product, in each type that a GPU computes.

fp32, bf16   values times values: torch's product (cuBLAS)
int8         codes and scales of rows and channels: W8A8 in Triton, exact int32 sums
fp8          e4m3 codes and the same scales: torch's scaled product (cuBLASLt, CUTLASS)

An 8-bit product in Triton adds to the residual stream itself; the others' results are added by the next norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from rgalign.kernels.add_norm_quantize import add_norm, add_norm_quantize
from rgalign.kernels.int8_gemm import int8_gemm, int8_gemm_add
from rgalign.kernels.quantize_rows import FP8, quantize_rows, quantize_rows_reference
from rgalign.kernels.swiglu_quantize import swiglu, swiglu_quantize

CudaDtype: TypeAlias = Literal["fp32", "bf16", "int8", "fp8"]
OPERANDS: dict[CudaDtype, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "int8": torch.int8,
    "fp8": FP8,
}  # of products


class Rows(NamedTuple):
    """What a product multiplies: [T, K] values, or codes with a scale a row."""

    values: Tensor
    scales: Tensor | None = None

    def at(self, index: Tensor) -> Rows:
        return Rows(*(None if each is None else each.index_select(0, index) for each in self))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Matrix:
    """Args:
    weight: [N, K] values or codes; scales: [N] float32, of codes.
    bias: [N] of the values' dtype, float32 beside codes.
    """

    weight: Tensor
    scales: Tensor | None = None
    bias: Tensor | None = None

    def part(self, first: int, last: int) -> Matrix:
        """Some of the output channels; no copy."""
        cut = slice(first, last)
        return Matrix(self.weight[cut], *(None if each is None else each[cut] for each in (self.scales, self.bias)))


def matrix_of(weight: Tensor, bias: Tensor | None, dtype: CudaDtype) -> Matrix:
    """Float weights [N, K] in ``dtype``, quantised by output channel where it has 8 bits."""
    operand = OPERANDS[dtype]
    if dtype in ("fp32", "bf16"):
        return Matrix(weight.to(operand), None, None if bias is None else bias.to(operand))
    codes, scales = quantize_rows_reference(weight, operand)
    return Matrix(codes, scales, bias)


def multiply(rows: Rows, matrix: Matrix, dtype: torch.dtype, workspace: Tensor | None = None) -> Tensor:
    """[T, N] in ``dtype``; workspace: of :func:`rgalign.kernels.int8_gemm.int8_gemm`."""
    weight, scales, bias = matrix.weight, matrix.scales, matrix.bias
    if scales is None or rows.scales is None:
        return torch.nn.functional.linear(rows.values, weight, bias)
    if weight.dtype == torch.int8:
        return int8_gemm(rows.values, rows.scales, weight, scales, bias, dtype, workspace)
    out: Tensor = torch._scaled_mm(
        rows.values, weight.T, scale_a=rows.scales[:, None], scale_b=scales[None], out_dtype=dtype, use_fast_accum=True
    )
    return out if bias is None else out + bias.to(dtype)


def multiply_add(residual: Tensor, rows: Rows, matrix: Matrix, workspace: Tensor | None = None) -> Tensor | None:
    """Adds the product to ``residual``, or returns it for the next :func:`normed` to add."""
    if matrix.weight.dtype != torch.int8 or matrix.scales is None or rows.scales is None:
        return multiply(rows, matrix, torch.float32 if matrix.weight.dtype == torch.float32 else torch.bfloat16)
    int8_gemm_add(residual, rows.values, rows.scales, matrix.weight, matrix.scales, matrix.bias, workspace)
    return None


def normed(residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float, operand: torch.dtype) -> Rows:
    """The norm of ``residual``, to which ``delta`` is added, as a product with weights of type ``operand`` wants it."""
    if operand in (torch.int8, FP8):
        return Rows(*add_norm_quantize(residual, delta, weight, eps, operand))
    return Rows(add_norm(residual, delta, weight, eps, operand))


def gated(gate_up: Tensor, operand: torch.dtype) -> Rows:
    """SwiGLU, in the same form."""
    if operand in (torch.int8, FP8):
        return Rows(*swiglu_quantize(gate_up, operand))
    return Rows(swiglu(gate_up, operand))


def as_rows(values: Tensor, operand: torch.dtype) -> Rows:
    """Values in the same form."""
    return Rows(*quantize_rows(values, operand)) if operand in (torch.int8, FP8) else Rows(values)
