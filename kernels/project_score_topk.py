"""Towers' outputs to ranked intents on a GPU: projection, unit vectors, fusion, scores, top-k. No [B, N] matrix.

The definition is ``score_reference.project_score_topk_reference``. Two plans, chosen by the sizes alone, so one
CUDA graph serves a bucket:

    one launch      a program takes 16 sessions through everything. For a catalogue and a W that one SM reads quickly.
    three launches  project (W is read once, not once a split) | scan: the catalogue cut in splits, each program streams
                    its split past its sessions' fused vectors and keeps their k best | merge: the best of all splits

Scores are exact to float32 rounding: the fused vector is kept as a sum of parts in the precision of the index (two of
float16, three of bfloat16), each multiplied on tensor cores and summed in float32; int8 codes are exact in float16 and
their scale is applied to the sum. One reads the index in its own precision and computes as if it were float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rgalign.kernels.project_latents import BLOCK_H, project_latents, project_tile
from rgalign.kernels.running_topk import NO_ROW, empty_list, insert, take_best
from rgalign.kernels.score_reference import Projection, Winners, project_score_topk_reference
from rgalign.kernels.scoring_plan import INTERPRETED, MAX_DIM, MAX_K, Plan, arithmetic_of, plan, tile_rows

UNIT_EPS = tl.constexpr(1e-6)


@triton.jit
def _unit(x):
    """Columns of [BLOCK_D, BLOCK_B] float32 divided by max(norm, eps); scaled first, so that no square overflows."""
    largest = tl.max(tl.abs(x), axis=0)
    scaled = x / tl.where(largest > 0, largest, 1.0)[None, :]
    root = tl.sqrt(tl.sum(scaled * scaled, axis=0))
    long = largest * root >= UNIT_EPS
    return tl.where(long[None, :], scaled / tl.where(long, root, 1.0)[None, :], x / UNIT_EPS)


@triton.jit
def _load_columns(ptr, b, wanted, d, D: tl.constexpr):
    """[B, D] -> [BLOCK_D, BLOCK_B] float32."""
    mask = (d < D)[:, None] & wanted[None, :]
    return tl.load(ptr + b.to(tl.int64)[None, :] * D + d[:, None], mask, 0.0).to(tl.float32)


@triton.jit
def _scan(
    fused,  # [BLOCK_D, BLOCK_B] float32
    vectors_ptr,  # [N, D]
    scales_ptr,  # [N] float32
    filters_ptr,  # [F, WORDS] int32
    filter_of_ptr,  # [B] int32
    b,
    B,
    N,
    first,
    last,
    D: tl.constexpr,
    K: tl.constexpr,
    K_PAD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    HAS_FILTERS: tl.constexpr,
    ARITHMETIC: tl.constexpr,
):
    """The K best of rows [first, last) for each session: lists [K_PAD, BLOCK_B]."""
    BLOCK_D: tl.constexpr = fused.shape[0]
    d = tl.arange(0, BLOCK_D)
    best_scores, best_rows = empty_list(K, K_PAD, b.shape[0])
    if HAS_FILTERS:
        words = (N + 63) // 64 * 2
        own = tl.load(filter_of_ptr + b, b < B, -1)
    if ARITHMETIC == "float16":
        high = fused.to(tl.float16)
        low = (fused - high.to(tl.float32)).to(tl.float16)
    if ARITHMETIC == "bfloat16":
        high = fused.to(tl.bfloat16)
        rest = fused - high.to(tl.float32)
        low = rest.to(tl.bfloat16)
        lowest = (rest - low.to(tl.float32)).to(tl.bfloat16)
    for start in range(first, last, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        mask = (n < last)[:, None] & (d < D)[None, :]
        tile = tl.load(vectors_ptr + n.to(tl.int64)[:, None] * D + d[None, :], mask, 0.0)
        if ARITHMETIC == "float16":
            scores = tl.dot(tile.to(tl.float16), high, tl.dot(tile.to(tl.float16), low))
        elif ARITHMETIC == "bfloat16":
            scores = tl.dot(tile, high, tl.dot(tile, low, tl.dot(tile, lowest)))
        else:
            scores = tl.dot(tile.to(tl.float32), fused, input_precision=ARITHMETIC)
        if HAS_SCALES:
            scores *= tl.load(scales_ptr + n, n < last, 0.0)[:, None]
        allowed = (n < last)[:, None]
        if HAS_FILTERS:
            address = filters_ptr + own.to(tl.int64)[None, :] * words + (n // 32)[:, None]
            word = tl.load(address, allowed & (own >= 0)[None, :], -1)
            allowed = allowed & (((word >> (n % 32)[:, None]) & 1) != 0)
        scores = tl.where(allowed & (scores == scores), scores, -float("inf"))
        # The condition is asked here and again in ``insert``: a loop directly in this one would keep Triton from
        # loading the next tiles while this one is scored.
        beaten = tl.max(scores, axis=0) > tl.min(best_scores, axis=0)
        if tl.max(beaten.to(tl.int32), axis=0) > 0:
            best_scores, best_rows = insert(scores, n[:, None], best_scores, best_rows)
    return best_scores, best_rows


@triton.jit
def _finish(
    scores,  # [M, BLOCK_B] lists
    rows,
    user,  # [BLOCK_D, BLOCK_B] unit
    query,
    omega,  # [BLOCK_B]
    vectors_ptr,
    scales_ptr,
    rows_ptr,  # [B, K] int64
    scores_ptr,  # [B, K] float32, as the parts
    user_part_ptr,
    query_part_ptr,
    b,
    B,
    D: tl.constexpr,
    K: tl.constexpr,
    HAS_SCALES: tl.constexpr,
):
    """Takes K winners out of the lists, best first, and says what the user and the query contributed."""
    BLOCK_D: tl.constexpr = user.shape[0]
    d = tl.arange(0, BLOCK_D)
    for place in range(K):
        score, row, scores, rows = take_best(scores, rows)
        found = (row < NO_ROW) & (score > -float("inf"))
        intent = _load_columns(vectors_ptr, row, found & (b < B), d, D)
        if HAS_SCALES:
            intent *= tl.load(scales_ptr + row, found, 0.0)[None, :]
        out = b.to(tl.int64) * K + place
        tl.store(rows_ptr + out, tl.where(found, row, -1).to(tl.int64), b < B)
        tl.store(scores_ptr + out, tl.where(found, score, -float("inf")), b < B)
        tl.store(user_part_ptr + out, omega * tl.sum(user * intent, axis=0), b < B)
        tl.store(query_part_ptr + out, (1 - omega) * tl.sum(query * intent, axis=0), b < B)


@triton.jit
def _one_launch_kernel(
    user_ptr, latents_ptr, weight_ptr, bias_ptr, norm_ptr, norm_eps, omega_ptr, vectors_ptr, scales_ptr, filters_ptr,
    filter_of_ptr, rows_ptr, scores_ptr, user_part_ptr, query_part_ptr, B, N,
    D: tl.constexpr, H: tl.constexpr, K: tl.constexpr, K_PAD: tl.constexpr, BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, HAS_QUERY: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr, HAS_SCALES: tl.constexpr, HAS_FILTERS: tl.constexpr,
    ARITHMETIC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    d = tl.arange(0, BLOCK_D)
    user = _unit(_load_columns(user_ptr, b, b < B, d, D))
    omega = tl.full([BLOCK_B], 1.0, tl.float32)
    query = tl.zeros([BLOCK_D, BLOCK_B], tl.float32)
    if HAS_QUERY:
        omega = tl.load(omega_ptr + b, b < B, 1.0)
        query = project_tile(
            latents_ptr, weight_ptr, bias_ptr, norm_ptr, norm_eps, b, omega < 1, d,
            D, H, BLOCK_H, HAS_BIAS, HAS_NORM, PRECISION,
        )  # fmt: skip
        query = tl.where((omega < 1)[None, :], _unit(query), 0.0)
    fused = omega[None, :] * user + (1 - omega)[None, :] * query
    scores, rows = _scan(
        fused, vectors_ptr, scales_ptr, filters_ptr, filter_of_ptr, b, B, N, 0, N,
        D, K, K_PAD, BLOCK_N, HAS_SCALES, HAS_FILTERS, ARITHMETIC,
    )  # fmt: skip
    scores = tl.where(tl.arange(0, K_PAD)[:, None] < K, scores, -float("inf"))
    _finish(
        scores, rows, user, query, omega, vectors_ptr, scales_ptr, rows_ptr, scores_ptr, user_part_ptr,
        query_part_ptr, b, B, D, K, HAS_SCALES,
    )  # fmt: skip


@triton.jit
def _scan_kernel(
    user_ptr, query_ptr, omega_ptr, vectors_ptr, scales_ptr, filters_ptr, filter_of_ptr,
    list_scores_ptr,  # [B, S, K] float32
    list_rows_ptr,  # [B, S, K] int32
    B, N, S, rows_per_split,
    D: tl.constexpr, K: tl.constexpr, K_PAD: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr, HAS_QUERY: tl.constexpr, HAS_SCALES: tl.constexpr, HAS_FILTERS: tl.constexpr,
    ARITHMETIC: tl.constexpr,
):  # fmt: skip
    # Neighbouring programs read the same split for other sessions: it comes from memory once and then from L2.
    b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    split = tl.program_id(1)
    d = tl.arange(0, BLOCK_D)
    fused = _unit(_load_columns(user_ptr, b, b < B, d, D))
    if HAS_QUERY:
        omega = tl.load(omega_ptr + b, b < B, 1.0)
        query = _unit(_load_columns(query_ptr, b, b < B, d, D))
        fused = omega[None, :] * fused + (1 - omega)[None, :] * query
    first = split * rows_per_split
    last = tl.minimum(first + rows_per_split, N)
    scores, rows = _scan(
        fused, vectors_ptr, scales_ptr, filters_ptr, filter_of_ptr, b, B, N, first, last,
        D, K, K_PAD, BLOCK_N, HAS_SCALES, HAS_FILTERS, ARITHMETIC,
    )  # fmt: skip
    slot = tl.arange(0, K_PAD)[:, None]
    out = (b.to(tl.int64)[None, :] * S + split) * K + slot
    mask = (slot < K) & (b < B)[None, :]
    tl.store(list_scores_ptr + out, scores, mask)
    tl.store(list_rows_ptr + out, rows, mask)


@triton.jit
def _merge_kernel(
    list_scores_ptr, list_rows_ptr, user_ptr, query_ptr, omega_ptr, vectors_ptr, scales_ptr,
    rows_ptr, scores_ptr, user_part_ptr, query_part_ptr, B, S,
    D: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, HAS_QUERY: tl.constexpr,
    HAS_SCALES: tl.constexpr,
):  # fmt: skip
    # One session a program; its S lists of K are one list of S K.
    b = tl.program_id(0) + tl.arange(0, 1)
    m = tl.arange(0, BLOCK_M)[:, None]
    entry = b.to(tl.int64)[None, :] * S * K + m
    scores = tl.load(list_scores_ptr + entry, m < S * K, -float("inf"))
    rows = tl.load(list_rows_ptr + entry, m < S * K, NO_ROW)
    d = tl.arange(0, BLOCK_D)
    user = _unit(_load_columns(user_ptr, b, b < B, d, D))
    omega = tl.full([1], 1.0, tl.float32)
    query = tl.zeros([BLOCK_D, 1], tl.float32)
    if HAS_QUERY:
        omega = tl.load(omega_ptr + b)
        query = _unit(_load_columns(query_ptr, b, b < B, d, D))
    _finish(
        scores, rows, user, query, omega, vectors_ptr, scales_ptr, rows_ptr, scores_ptr, user_part_ptr,
        query_part_ptr, b, B, D, K, HAS_SCALES,
    )  # fmt: skip


@dataclass(frozen=True)
class _Call:
    """The tensors of a call. One that is absent is stood in for by ``user``: its pointer is not read."""

    user: Tensor
    latents: Tensor | None
    projection: Projection | None
    omega: Tensor
    vectors: Tensor
    scales: Tensor | None
    k: int
    filters: Tensor | None
    filter_of: Tensor | None

    def present(self, tensor: Tensor | None) -> Tensor:
        return self.user if tensor is None else tensor

    @property
    def catalogue(self) -> tuple[Tensor, ...]:
        words = None if self.filters is None else self.filters.view(torch.int32)
        return (self.vectors, *map(self.present, (self.scales, words, self.filter_of)))

    def shape(self, cut: Plan) -> dict[str, Any]:
        return {
            "D": self.vectors.shape[1],
            "K": self.k,
            "BLOCK_D": cut.block_d,
            "HAS_QUERY": self.latents is not None,
            "HAS_SCALES": self.scales is not None,
        }

    def scan(self, cut: Plan) -> dict[str, Any]:
        return {
            "K_PAD": max(2, triton.next_power_of_2(self.k)),
            "BLOCK_B": cut.block_b,
            "BLOCK_N": cut.block_n,
            "HAS_FILTERS": self.filters is not None,
            "ARITHMETIC": arithmetic_of(self.vectors.dtype),
            "num_warps": cut.num_warps,
            "num_stages": cut.num_stages,
        }


def launch(
    user: Tensor,
    latents: Tensor | None,
    projection: Projection | None,
    omega: Tensor,
    vectors: Tensor,
    scales: Tensor | None,
    k: int,
    filters: Tensor | None = None,
    filter_of: Tensor | None = None,
    *,
    cut: Plan | None = None,
) -> Winners:
    """The kernels, called as the definition is; ``cut`` overrules the plan, for tests and tuning."""
    num_sessions, (num_rows, dim) = len(user), vectors.shape
    call = _Call(user, latents, projection, omega, vectors, scales, min(k, num_rows), filters, filter_of)
    if cut is None:
        hidden = 0 if latents is None else latents.shape[1]
        cut = plan(num_sessions, num_rows, dim, hidden, call.k, vectors.element_size(), *device_limits(user.device))
    out = Winners(
        torch.empty(num_sessions, call.k, dtype=torch.int64, device=user.device),
        *(torch.empty(num_sessions, call.k, device=user.device) for _ in range(3)),
    )
    if num_sessions:
        (_one_launch if cut.one_launch else _three_launches)(call, cut, out)
    return out


def device_limits(device: torch.device) -> tuple[int, int]:
    """Multiprocessors and rows of a tile; in the interpreter 4, so that it too splits the catalogue."""
    if device.type != "cuda":
        return 4, 128
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, tile_rows(10 * properties.major + properties.minor)


def _precision() -> str:
    return "ieee" if INTERPRETED else "tf32x3"


def _one_launch(call: _Call, cut: Plan, out: Winners) -> None:
    weight, bias, norm_weight, norm_eps = call.projection or Projection(call.user)
    _one_launch_kernel[(triton.cdiv(len(call.user), cut.block_b),)](
        call.user,
        *map(call.present, (call.latents, weight, bias, norm_weight)),
        norm_eps,
        call.omega,
        *call.catalogue,
        *out,
        len(call.user),
        len(call.vectors),
        H=weight.shape[1],
        BLOCK_H=BLOCK_H,
        HAS_BIAS=bias is not None,
        HAS_NORM=norm_weight is not None,
        PRECISION=_precision(),
        **call.shape(cut),
        **call.scan(cut),
    )


def _three_launches(call: _Call, cut: Plan, out: Winners) -> None:
    size, num_rows = len(call.user), len(call.vectors)
    query = call.user
    if call.latents is not None and call.projection is not None:
        query = project_latents(call.latents, call.projection, call.omega, _precision())
    list_scores = torch.empty(size, cut.num_splits, call.k, device=call.user.device)
    list_rows = torch.empty_like(list_scores, dtype=torch.int32)
    _scan_kernel[(triton.cdiv(size, cut.block_b), cut.num_splits)](
        call.user,
        query,
        call.omega,
        *call.catalogue,
        list_scores,
        list_rows,
        size,
        num_rows,
        cut.num_splits,
        cut.rows_per_split,
        **call.shape(cut),
        **call.scan(cut),
    )
    block_m = triton.next_power_of_2(cut.num_splits * call.k)
    _merge_kernel[(size,)](
        list_scores,
        list_rows,
        call.user,
        query,
        call.omega,
        *call.catalogue[:2],
        *out,
        size,
        cut.num_splits,
        BLOCK_M=block_m,
        num_warps=max(1, min(16, block_m // 512)),
        **call.shape(cut),
    )


SCHEMA = (
    "(Tensor user, Tensor? latents, Tensor? weight, Tensor? bias, Tensor? norm_weight, float norm_eps, Tensor omega, "
    "Tensor vectors, Tensor? scales, int k, Tensor? filters, Tensor? filter_of) -> (Tensor, Tensor, Tensor, Tensor)"
)
_Four = tuple[Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("rgalign::project_score_topk", mutates_args=(), device_types="cuda", schema=SCHEMA)
def _op(user, latents, weight, bias, norm_weight, norm_eps, omega, vectors, scales, k, filters, filter_of) -> _Four:
    projection = None if weight is None else Projection(weight, bias, norm_weight, norm_eps)
    rows, scores, user_part, query_part = launch(
        user, latents, projection, omega, vectors, scales, k, filters, filter_of
    )
    return rows, scores, user_part, query_part


@_op.register_kernel("cpu")
def _on_cpu(user, latents, weight, bias, norm_weight, norm_eps, omega, vectors, scales, k, filters, filter_of) -> _Four:
    projection = None if weight is None else Projection(weight, bias, norm_weight, norm_eps)
    found = project_score_topk_reference(user, latents, projection, omega, vectors, scales, k, filters, filter_of)
    return found.rows.contiguous(), found.scores.contiguous(), found.user_part, found.query_part


@_op.register_fake
def _fake(user, latents, weight, bias, norm_weight, norm_eps, omega, vectors, scales, k, filters, filter_of) -> _Four:
    shape = (user.shape[0], torch.sym_min(k, vectors.shape[0]))
    scores, user_part, query_part = (user.new_empty(shape, dtype=torch.float32) for _ in range(3))
    return user.new_empty(shape, dtype=torch.int64), scores, user_part, query_part


def project_score_topk(
    user: Tensor,
    latents: Tensor | None,
    projection: Projection | None,
    omega: Tensor,
    vectors: Tensor,
    scales: Tensor | None,
    k: int,
    filters: Tensor | None = None,
    filter_of: Tensor | None = None,
) -> Winners:
    """The k best intents of each session; on a GPU without a host synchronisation, so it can be captured in a graph.

    Args:
        user: [B, D] float, of any length; latents: [B, H] float or None (ω is then 1). Any B from 1, D up to 512.
        projection: weight [D, H], bias [D] or None, norm_weight [H] or None; needed with ``latents``.
        omega: [B] float32 in [0, 1]; where it is 1, the latent query is not read.
        vectors: [N, D] unit vectors in float32, float16, bfloat16, or int8 with ``scales`` [N] float32;
            N < 2^31 - 1024.
        k: 1 to 64; more than N is clipped to it.
        filters: [F, ceil(N / 64)] int64 bitsets, with ``filter_of`` [B] int32, -1 for none.

    Returns:
        Winners; a session whose scores are NaN comes back as padding.

    Raises:
        ValueError: k or D out of range, or a tensor that is not contiguous.
    """
    if not 1 <= k <= MAX_K or vectors.shape[1] > MAX_DIM:
        required, received = f"k from 1 to {MAX_K} and D to {MAX_DIM}", f"{k} and {vectors.shape[1]}"
        raise ValueError(f"project_score_topk: required {required}; received {received}")
    weight, bias, norm_weight, norm_eps = projection or (None, None, None, 1e-6)
    tensors = {"user": user, "latents": latents, "weight": weight, "vectors": vectors, "filters": filters}
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"project_score_topk: required a contiguous {name}; received strides {tensor.stride()}")
    arguments = (norm_eps, omega, vectors, scales, k, filters, filter_of)
    return Winners(*torch.ops.rgalign.project_score_topk(user, latents, weight, bias, norm_weight, *arguments))
