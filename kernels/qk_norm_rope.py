"""RMSNorm of each query and key head (Qwen3; optional) and rotary embedding, in place on the fused projection.

    h = h g / sqrt(mean(h^2) + eps)                                  g of the queries, or of the keys
    (h_i, h_i+n) = (h_i cos - h_i+n sin, h_i+n cos + h_i sin),       n = head_dim / 2, angle = position f_i

Heads lie side by side from column 0: first queries, then keys; what follows (the values) is not touched.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rgalign.kernels.on_cpu import kernels_on_cpu

HEADS_EACH = 8  # heads of one program


def qk_norm_rope_reference(
    x: Tensor,
    positions: Tensor,
    cosines: Tensor,
    sines: Tensor,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
    eps: float,
    num_heads: int,
    num_kv_heads: int,
) -> None:
    """The definition; ``x`` is changed."""
    dim = 2 * cosines.shape[1]
    heads = x[:, : (num_heads + num_kv_heads) * dim].reshape(len(x), -1, dim).float()
    if query_norm is not None and key_norm is not None:
        gains = torch.cat([query_norm.expand(num_heads, dim), key_norm.expand(num_kv_heads, dim)])
        heads = heads * torch.rsqrt(heads.square().mean(dim=-1, keepdim=True) + eps) * gains
    at = positions.long()
    cos, sin = cosines[at][:, None], sines[at][:, None]
    first, second = heads.chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    x[:, : turned.shape[1] * dim] = turned.flatten(1).to(x.dtype)


@triton.jit
def _gain(query_norm_ptr, key_norm_ptr, is_key, column, mask):
    return tl.where(is_key, tl.load(key_norm_ptr + column, mask, 0.0), tl.load(query_norm_ptr + column, mask, 0.0))


@triton.jit
def _qk_norm_rope_kernel(
    x_ptr,  # [T, ...], rows ROW_STRIDE apart, changed
    positions_ptr,  # [T] int32
    cosines_ptr,  # [P, HEAD_DIM / 2] float32
    sines_ptr,
    query_norm_ptr,  # [HEAD_DIM] float32
    key_norm_ptr,
    eps,
    ROW_STRIDE: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    HEADS_EACH: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    HALF: tl.constexpr = HEAD_DIM // 2
    t = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS_EACH + tl.arange(0, HEADS_EACH))[:, None]
    i = tl.arange(0, BLOCK_HALF)[None, :]
    mask = (head < NUM_HEADS + NUM_KV_HEADS) & (i < HALF)
    at = x_ptr + t * ROW_STRIDE + head * HEAD_DIM + i
    first = tl.load(at, mask, 0.0).to(tl.float32)
    second = tl.load(at + HALF, mask, 0.0).to(tl.float32)
    if HAS_NORM:
        squares = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
        scale = (1.0 / tl.sqrt(squares / HEAD_DIM + eps))[:, None]
        is_key = head >= NUM_HEADS
        first *= scale * _gain(query_norm_ptr, key_norm_ptr, is_key, i, i < HALF)
        second *= scale * _gain(query_norm_ptr, key_norm_ptr, is_key, i + HALF, i < HALF)
    row = tl.load(positions_ptr + t).to(tl.int64) * HALF
    cos = tl.load(cosines_ptr + row + i, i < HALF, 0.0)
    sin = tl.load(sines_ptr + row + i, i < HALF, 0.0)
    tl.store(at, (first * cos - second * sin).to(x_ptr.dtype.element_ty), mask)
    tl.store(at + HALF, (second * cos + first * sin).to(x_ptr.dtype.element_ty), mask)


def _launch(
    x: Tensor,
    positions: Tensor,
    cosines: Tensor,
    sines: Tensor,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
    eps: float,
    num_heads: int,
    num_kv_heads: int,
) -> None:
    half = cosines.shape[1]
    _qk_norm_rope_kernel[(len(x), triton.cdiv(num_heads + num_kv_heads, HEADS_EACH))](
        x,
        positions,
        cosines,
        sines,
        cosines if query_norm is None else query_norm,
        cosines if key_norm is None else key_norm,
        eps,
        ROW_STRIDE=x.stride(0),
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=2 * half,
        BLOCK_HALF=triton.next_power_of_2(half),
        HEADS_EACH=HEADS_EACH,
        HAS_NORM=query_norm is not None,
        num_warps=1,
    )


SCHEMA = (
    "(Tensor(a!) x, Tensor positions, Tensor cosines, Tensor sines, Tensor? query_norm, Tensor? key_norm, float eps, "
    "int num_heads, int num_kv_heads) -> ()"
)


@torch.library.custom_op("rgalign::qk_norm_rope", mutates_args=("x",), device_types="cuda", schema=SCHEMA)
def _op(x, positions, cosines, sines, query_norm, key_norm, eps, num_heads, num_kv_heads) -> None:
    _launch(x, positions, cosines, sines, query_norm, key_norm, eps, num_heads, num_kv_heads)


@_op.register_kernel("cpu")
def _on_cpu(x, positions, cosines, sines, query_norm, key_norm, eps, num_heads, num_kv_heads) -> None:
    call = _launch if kernels_on_cpu() else qk_norm_rope_reference
    call(x, positions, cosines, sines, query_norm, key_norm, eps, num_heads, num_kv_heads)


@_op.register_fake
def _fake(x, positions, cosines, sines, query_norm, key_norm, eps, num_heads, num_kv_heads) -> None:
    return None


def qk_norm_rope(
    x: Tensor,
    positions: Tensor,
    cosines: Tensor,
    sines: Tensor,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
    eps: float,
    num_heads: int,
    num_kv_heads: int,
) -> None:
    """Normalises and rotates queries and keys in place.

    Args:
        x: [T, C] of a float dtype, T at least 1, rows contiguous; the first (num_heads + num_kv_heads) head_dim
            columns are changed. Either count may be 0.
        positions: [T] int32, each below P.
        cosines, sines: [P, head_dim / 2] float32, contiguous.
        query_norm, key_norm: [head_dim] float32, both or neither.

    Raises:
        ValueError: a shape, dtype or stride that is not that.
    """
    dim = 2 * cosines.shape[1]
    fits = x.dim() == 2 and x.stride(1) == 1 and 0 < (num_heads + num_kv_heads) * dim <= x.shape[1]
    fits = fits and positions.shape == x.shape[:1] and positions.dtype == torch.int32 and len(x) > 0
    fits = fits and cosines.shape == sines.shape and cosines.is_contiguous() and sines.is_contiguous()
    fits = fits and (query_norm is None) == (key_norm is None)
    if not fits or any(gain is not None and gain.shape != (dim,) for gain in (query_norm, key_norm)):
        required = (
            f"required x [T, at least {(num_heads + num_kv_heads) * dim}], positions [T] int32, both norms or none"
        )
        raise ValueError(f"qk_norm_rope: {required}; received {tuple(x.shape)}, {tuple(positions.shape)}")
    _op(x, positions, cosines, sines, query_norm, key_norm, eps, num_heads, num_kv_heads)
