"""Causal attention of packed sequences that all begin with one shared prefix; grouped heads, head_dim up to 128.

    out[i] = softmax(q_i [prefix keys; own keys up to i] / sqrt(head_dim)) [prefix values; own values up to i]

Queries are the last tokens of each sequence (all of them, or one in a pruned last layer). The heads of a group and
neighbouring tokens share a program's rows, so keys and values are read once a group. The definition is torch's SDPA.
A query's bits depend on its own sequence only: key blocks begin at the prefix's and at the sequence's first key.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from rgalign.kernels.on_cpu import kernels_on_cpu
from rgalign.kernels.scoring_plan import INTERPRETED

LOG2_E = 1.4426950408889634
MAX_HEAD_DIM = 128
BLOCK_N = 64


def prefix_attention_reference(
    q: Tensor,
    kv: Tensor,
    prefix_kv: Tensor | None,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    num_heads: int,
    num_kv_heads: int,
) -> Tensor:
    """The definition; rows of no sequence are 0."""
    dim = q.shape[1] // num_heads
    out = torch.zeros(len(q), num_heads * dim, dtype=q.dtype, device=q.device)
    given = kv[:0] if prefix_kv is None else prefix_kv
    queries, keys = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for first, last, start, end in zip(queries, queries[1:], keys, keys[1:], strict=False):
        if first == last:
            continue
        own = torch.cat([given, kv[start:end]]).view(-1, 2, num_kv_heads, dim)
        key, value = own[:, 0].transpose(0, 1), own[:, 1].transpose(0, 1)
        visible = torch.arange(len(own), device=q.device) <= torch.arange(
            len(own) - (last - first), len(own), device=q.device
        ).unsqueeze(1)
        found = torch.nn.functional.scaled_dot_product_attention(
            q[first:last].view(-1, num_heads, dim).transpose(0, 1)[None],
            key[None],
            value[None],
            attn_mask=visible,
            enable_gqa=True,
        )
        out[first:last] = found[0].transpose(0, 1).flatten(1)
    return out


@triton.jit
def _attend(
    sums, total, peak,  # [BLOCK_M, BLOCK_D], [BLOCK_M], [BLOCK_M] float32, of what was attended to so far
    q, kv_ptr, start, length, visible, kv_head, scale,
    ROW_STRIDE: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """One block of keys: ``start`` .. of the rows at ``kv_ptr``, those below ``length`` and up to ``visible``."""
    BLOCK_D: tl.constexpr = q.shape[1]
    n = start + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    mask = (n < length)[:, None] & (d < HEAD_DIM)[None, :]
    at = kv_ptr + n.to(tl.int64)[:, None] * ROW_STRIDE + kv_head * HEAD_DIM + d[None, :]
    key = tl.load(at, mask, 0.0)
    value = tl.load(at + NUM_KV_HEADS * HEAD_DIM, mask, 0.0)
    if UPCAST:  # the interpreter's bfloat16 products are wrong
        key, value = key.to(tl.float32), value.to(tl.float32)
    scores = tl.dot(q, tl.trans(key), input_precision="ieee") * scale
    scores = tl.where((n < length)[None, :] & (n[None, :] <= visible[:, None]), scores, -float("inf"))
    higher = tl.maximum(peak, tl.max(scores, axis=1))
    base = tl.where(higher > -float("inf"), higher, 0.0)
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(peak - base)
    sums = tl.dot(weights.to(value.dtype), value, sums * shrink[:, None], input_precision="ieee")
    return sums, total * shrink + tl.sum(weights, axis=1), higher


@triton.jit
def _prefix_attention_kernel(
    q_ptr,  # [Tq, NUM_HEADS * HEAD_DIM], rows Q_STRIDE apart
    kv_ptr,  # [T, 2 * NUM_KV_HEADS * HEAD_DIM]: keys, then values, rows KV_STRIDE apart
    prefix_ptr,  # [P, 2 * NUM_KV_HEADS * HEAD_DIM]
    cu_seqlens_q_ptr,  # [B + 1] int32
    cu_seqlens_k_ptr,
    tiles_ptr,  # [tiles, 2] int32: sequence or -1, its first query of this program
    out_ptr,  # [Tq, NUM_HEADS * HEAD_DIM]
    scale,
    prefix_length,
    Q_STRIDE: tl.constexpr,
    KV_STRIDE: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    TOKENS: tl.constexpr = BLOCK_M // GROUP
    sequence = tl.load(tiles_ptr + 2 * tl.program_id(0))
    if sequence < 0:
        return
    first = tl.load(tiles_ptr + 2 * tl.program_id(0) + 1)
    kv_head = tl.program_id(1)
    begin = tl.load(cu_seqlens_q_ptr + sequence)
    num_queries = tl.load(cu_seqlens_q_ptr + sequence + 1) - begin
    key_begin = tl.load(cu_seqlens_k_ptr + sequence)
    num_keys = tl.load(cu_seqlens_k_ptr + sequence + 1) - key_begin
    before = num_keys - num_queries  # own keys before the first query

    row = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    token = first + row // GROUP
    wanted = (row < TOKENS * GROUP) & (token < num_queries)
    column = (kv_head * GROUP + row % GROUP)[:, None] * HEAD_DIM + d[None, :]
    mask = wanted[:, None] & (d < HEAD_DIM)[None, :]
    q = tl.load(q_ptr + (begin + token).to(tl.int64)[:, None] * Q_STRIDE + column, mask, 0.0)
    if UPCAST:
        q = q.to(tl.float32)
    sums = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    peak = tl.full([BLOCK_M], -float("inf"), tl.float32)
    everything = tl.full([BLOCK_M], 2147483647, tl.int32)
    for start in range(0, prefix_length, BLOCK_N):
        sums, total, peak = _attend(
            sums, total, peak, q, prefix_ptr, start, prefix_length, everything, kv_head, scale,
            2 * NUM_KV_HEADS * HEAD_DIM, NUM_KV_HEADS, HEAD_DIM, BLOCK_N, UPCAST,
        )  # fmt: skip
    own_ptr = kv_ptr + key_begin.to(tl.int64) * KV_STRIDE
    for start in range(0, tl.minimum(before + first + TOKENS, num_keys), BLOCK_N):
        sums, total, peak = _attend(
            sums, total, peak, q, own_ptr, start, num_keys, before + token, kv_head, scale,
            KV_STRIDE, NUM_KV_HEADS, HEAD_DIM, BLOCK_N, UPCAST,
        )  # fmt: skip
    out = sums / tl.where(total > 0, total, 1.0)[:, None]
    out_at = out_ptr + (begin + token).to(tl.int64)[:, None] * (NUM_HEADS * HEAD_DIM) + column
    tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask)


def block_rows(num_heads: int, num_kv_heads: int, one_token: bool) -> int:
    """BLOCK_M: 64 rows, or 16 where each sequence asks for one token; at least a group."""
    group = num_heads // num_kv_heads
    return max(16 if one_token or INTERPRETED else 64, int(triton.next_power_of_2(group)))


def query_tiles(num_queries: Sequence[int], group: int, block_m: int) -> list[tuple[int, int]]:
    """Programs of one key-value head: (sequence, first query), the longest rows of keys first."""
    tokens = block_m // group
    tiles = [(row, first) for row, size in enumerate(num_queries) for first in range(0, size, tokens)]
    return sorted(tiles, key=lambda tile: -tile[1])


def _launch(q, kv, prefix_kv, cu_seqlens_q, cu_seqlens_k, tiles, num_heads, num_kv_heads, block_m) -> Tensor:
    dim = q.shape[1] // num_heads
    out = torch.empty(len(q), num_heads * dim, dtype=q.dtype, device=q.device)
    _prefix_attention_kernel[(len(tiles), num_kv_heads)](
        q,
        kv,
        kv if prefix_kv is None else prefix_kv,
        cu_seqlens_q,
        cu_seqlens_k,
        tiles,
        out,
        LOG2_E / dim**0.5,
        0 if prefix_kv is None else len(prefix_kv),
        Q_STRIDE=q.stride(0),
        KV_STRIDE=kv.stride(0),
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=dim,
        BLOCK_M=block_m,
        BLOCK_N=BLOCK_N if not INTERPRETED else 32,
        BLOCK_D=triton.next_power_of_2(dim),
        UPCAST=INTERPRETED and q.dtype == torch.bfloat16,
        num_warps=4,
        num_stages=2,
    )
    return out


SCHEMA = (
    "(Tensor q, Tensor kv, Tensor? prefix_kv, Tensor cu_seqlens_q, Tensor cu_seqlens_k, Tensor tiles, int num_heads, "
    "int num_kv_heads, int block_m) -> Tensor"
)


@torch.library.custom_op("rgalign::prefix_attention", mutates_args=(), device_types="cuda", schema=SCHEMA)
def _op(q, kv, prefix_kv, cu_seqlens_q, cu_seqlens_k, tiles, num_heads, num_kv_heads, block_m) -> Tensor:
    return _launch(q, kv, prefix_kv, cu_seqlens_q, cu_seqlens_k, tiles, num_heads, num_kv_heads, block_m)


@_op.register_kernel("cpu")
def _on_cpu(q, kv, prefix_kv, cu_seqlens_q, cu_seqlens_k, tiles, num_heads, num_kv_heads, block_m) -> Tensor:
    if kernels_on_cpu():
        return _launch(q, kv, prefix_kv, cu_seqlens_q, cu_seqlens_k, tiles, num_heads, num_kv_heads, block_m)
    return prefix_attention_reference(q, kv, prefix_kv, cu_seqlens_q, cu_seqlens_k, num_heads, num_kv_heads)


@_op.register_fake
def _fake(q: Tensor, kv, prefix_kv, cu_seqlens_q, cu_seqlens_k, tiles, num_heads, num_kv_heads, block_m) -> Tensor:
    return q.new_empty(q.shape)


def prefix_attention(
    q: Tensor,
    kv: Tensor,
    prefix_kv: Tensor | None,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    tiles: Tensor,
    num_heads: int,
    num_kv_heads: int,
    block_m: int,
) -> Tensor:
    """Attention of every sequence's last queries over [prefix; own keys], causal.

    Args:
        q: [Tq, num_heads * head_dim], rows contiguous.
        kv: [T, 2 * num_kv_heads * head_dim], keys then values, rows contiguous, of the dtype of ``q``.
        prefix_kv: [P, 2 * num_kv_heads * head_dim] of the same dtype, contiguous, P at least 1; None: no prefix.
        cu_seqlens_q, cu_seqlens_k: [B + 1] int32; a sequence has at least as many keys as queries, and may have none.
        tiles: [programs, 2] int32, of :func:`query_tiles` for ``block_m``; rows of -1 are idle, so that one CUDA graph
            serves a bucket.
        block_m: of :func:`block_rows`.

    Returns:
        [Tq, num_heads * head_dim]; rows of no sequence are not written on a GPU.

    Raises:
        ValueError: a shape, dtype or stride that is not that.
    """
    dim, rest = divmod(q.shape[1], num_heads)
    fits = (
        not rest and 0 < dim <= MAX_HEAD_DIM and num_heads % num_kv_heads == 0 and block_m >= num_heads // num_kv_heads
    )
    fits = fits and kv.shape[1] == 2 * num_kv_heads * dim and q.stride(1) == kv.stride(1) == 1 and q.dtype == kv.dtype
    if prefix_kv is not None:
        fits = fits and prefix_kv.shape[1:] == kv.shape[1:] and len(prefix_kv) > 0 and prefix_kv.is_contiguous()
        fits = fits and prefix_kv.dtype == q.dtype
    if not fits or {each.dtype for each in (cu_seqlens_q, cu_seqlens_k, tiles)} != {torch.int32}:
        required = f"required head_dim up to {MAX_HEAD_DIM}, one dtype, rows contiguous, int32 offsets and tiles"
        received = (
            f"q {tuple(q.shape)} {q.dtype}, kv {tuple(kv.shape)} {kv.dtype}, {num_heads} and {num_kv_heads} heads"
        )
        raise ValueError(f"prefix_attention: {required}; received {received}")
    out: Tensor = _op(q, kv, prefix_kv, cu_seqlens_q, cu_seqlens_k, tiles, num_heads, num_kv_heads, block_m)
    return out
