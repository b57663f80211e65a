"""Latent queries to projected queries: q = W RMSNorm(e) + b, and 0 where e = 0 (the norm is optional).

The definition is ``score_reference.project``. The norm is a factor of each session and one of each coordinate: it
costs one sum of squares on the way:  W (r e * g) + b = r (W (e * g)) + b,  r = 1 / sqrt(mean(e^2) + eps).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rgalign.kernels.score_reference import Projection

BLOCK_H = 64
FEW_SESSIONS = 8  # up to here one session a program: more programs read W at once


@triton.jit
def project_tile(
    latents_ptr,  # [B, H]
    weight_ptr,  # [D, H]
    bias_ptr,  # [D]
    norm_ptr,  # [H]
    norm_eps,
    b,  # [BLOCK_B] sessions
    wanted,  # [BLOCK_B] those that are read: NaN in another must not matter
    d,  # [BLOCK_D] coordinates of q
    D: tl.constexpr,
    H: tl.constexpr,
    BLOCK_H: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """q [BLOCK_D, BLOCK_B] float32."""
    BLOCK_B: tl.constexpr = b.shape[0]
    BLOCK_D: tl.constexpr = d.shape[0]
    q = tl.zeros([BLOCK_D, BLOCK_B], tl.float32)
    squares = tl.zeros([BLOCK_B], tl.float32)
    largest = tl.zeros([BLOCK_B], tl.float32)
    for start in range(0, H, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        e_mask = wanted[:, None] & (h < H)[None, :]
        e = tl.load(latents_ptr + b.to(tl.int64)[:, None] * H + h[None, :], e_mask, 0.0).to(tl.float32)
        w_mask = (d < D)[:, None] & (h < H)[None, :]
        w = tl.load(weight_ptr + d[:, None] * H + h[None, :], w_mask, 0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.max(tl.abs(e), axis=1))
        if HAS_NORM:
            squares += tl.sum(e * e, axis=1)
            e *= tl.load(norm_ptr + h, h < H, 0.0).to(tl.float32)[None, :]
        if BLOCK_B == 1:
            q += tl.sum(w * e, axis=1)[:, None]
        else:
            q = tl.dot(w, tl.trans(e), q, input_precision=PRECISION)
    if HAS_NORM:
        q *= (1.0 / tl.sqrt(squares / H + norm_eps))[None, :]
    if HAS_BIAS:
        q += tl.load(bias_ptr + d, d < D, 0.0).to(tl.float32)[:, None]
    return tl.where((largest > 0)[None, :] | (largest != largest)[None, :], q, 0.0)


@triton.jit
def _project_kernel(
    latents_ptr,  # [B, H]
    weight_ptr,  # [D, H]
    bias_ptr,  # [D]
    norm_ptr,  # [H]
    norm_eps,
    omega_ptr,  # [B] float32
    out_ptr,  # [B, D] float32
    B,
    D: tl.constexpr,
    H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    b = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    wanted = tl.load(omega_ptr + b, b < B, 1.0) < 1
    q = project_tile(
        latents_ptr, weight_ptr, bias_ptr, norm_ptr, norm_eps, b, wanted, d,
        D, H, BLOCK_H, HAS_BIAS, HAS_NORM, PRECISION,
    )  # fmt: skip
    mask = (d < D)[:, None] & (b < B)[None, :]
    tl.store(out_ptr + b[None, :] * D + d[:, None], tl.where(wanted[None, :], q, 0.0), mask)


def project_latents(latents: Tensor, projection: Projection, omega: Tensor, precision: str) -> Tensor:
    """Projected queries, not normalised; rows with ω = 1 are 0 and not read.

    Args:
        latents: [B, H], contiguous, any float dtype.
        projection: weight [D, H] contiguous.
        omega: [B] float32.
        precision: of ``tl.dot`` for float32: "tf32x3" on a GPU, "ieee" in the interpreter.

    Returns:
        [B, D] float32.
    """
    weight, bias, norm_weight, norm_eps = projection
    num_sessions, (dim, hidden) = len(latents), weight.shape
    out = torch.empty(num_sessions, dim, dtype=torch.float32, device=latents.device)
    few = num_sessions <= FEW_SESSIONS
    block_b, block_d = (1, 2) if few else (16, 16)
    _project_kernel[(triton.cdiv(dim, block_d), triton.cdiv(num_sessions, block_b))](
        latents,
        weight,
        weight if bias is None else bias,
        weight if norm_weight is None else norm_weight,
        norm_eps,
        omega,
        out,
        num_sessions,
        D=dim,
        H=hidden,
        BLOCK_B=block_b,
        BLOCK_D=block_d,
        BLOCK_H=1024 if few else BLOCK_H,
        HAS_BIAS=bias is not None,
        HAS_NORM=norm_weight is not None,
        PRECISION=precision,
        num_warps=4,
    )
    return out
