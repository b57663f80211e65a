"""The definition of scoring a batch of sessions against the catalogue: plain torch, any device.

    e' = RMSNorm(e)     only with ``norm_weight``: e / sqrt(mean(e^2) + eps) * norm_weight, the reasoner's final norm
    q  = W e' + b       q̂ = unit(q), and 0 where every value of e is 0
    v  = ω û + (1 − ω) q̂       û = unit(u)       unit(x) = x / max(|x|, 1e-6)
    score = v · î              user_part = ω (û · î)       query_part = (1 − ω) (q̂ · î)

The k best of each session by score descending, then row ascending; −0 ties with +0. Where ω = 1 the latent query is not
read: it may hold NaN. ``score`` is the one dot product; the parts add up to it within rounding.

Paper eq. 4. The same arithmetic on a CPU is csrc/scorer.h, on a GPU kernels/project_score_topk.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

EPS = 1e-6
PADDING = -1


class Projection(NamedTuple):
    """The query tower for serving. ``QueryTower.folded`` gives W and b.

    Args:
        weight: [D, H].
        bias: [D], None for 0.
        norm_weight: [H] of the reasoner's final RMSNorm, for states that have not been through it; None: they have.
        norm_eps: the ε of that norm.
    """

    weight: Tensor
    bias: Tensor | None = None
    norm_weight: Tensor | None = None
    norm_eps: float = 1e-6


class Winners(NamedTuple):
    """Best first. A session with fewer than k allowed rows ends in row -1, score -inf, parts 0."""

    rows: Tensor  # [B, k'] int64, k' = min(k, N)
    scores: Tensor  # [B, k'] float32
    user_part: Tensor  # [B, k'] float32
    query_part: Tensor  # [B, k'] float32


def unit(vectors: Tensor) -> Tensor:
    """[..., D] -> unit vectors, float32; the norm is taken in float64, so that no length overflows. 0 stays 0."""
    norms = vectors.double().norm(dim=-1, keepdim=True)
    result: Tensor = (vectors.double() / norms.clamp_min(EPS)).float()
    return result


def rms_norm(latents: Tensor, weight: Tensor, eps: float) -> Tensor:
    """[B, H] -> [B, H] float32: a decoder's final norm."""
    latents = latents.float()
    mean_square = latents.square().mean(dim=-1, keepdim=True)
    return latents * torch.rsqrt(mean_square + eps) * weight.float()


def project(latents: Tensor, projection: Projection) -> Tensor:
    """[B, H] -> q [B, D] float32, not normalised; 0 where every value of a latent query is 0."""
    weight, bias, norm_weight, norm_eps = projection
    states = latents.float() if norm_weight is None else rms_norm(latents, norm_weight, norm_eps)
    projected = functional.linear(states, weight.float(), None if bias is None else bias.float())
    return projected.where((latents != 0).any(dim=-1, keepdim=True), 0.0)


def decode(vectors: Tensor, scales: Tensor | None) -> Tensor:
    """Stored rows [N, D] of any dtype (int8: with their scales [N]) -> float32."""
    return vectors.float() if scales is None else vectors.float() * scales.unsqueeze(-1)


def fuse(user: Tensor, query: Tensor | None, omega: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """u [B, D], q [B, D] and ω [B] -> v, û, q̂ [B, D] float32; without q, or where ω = 1, v is û bit for bit."""
    user = unit(user)
    if query is None:
        return user, user, torch.zeros_like(user)
    weight = omega.unsqueeze(-1).double()
    query = unit(query).where(weight < 1, 0.0)
    fused = weight * user.double() + (1 - weight) * query.double()
    return fused.float(), user, query


def allowed(filters: Tensor, filter_of: Tensor, num_rows: int) -> Tensor:
    """Bitsets [F, ceil(N / 64)] int64, bit r % 64 of word r // 64, and each session's filter (-1: none) -> [B, N]."""
    rows = torch.arange(num_rows, device=filters.device)
    words = filters[filter_of.clamp_min(0).long()][:, rows // 64]
    return ((words >> (rows % 64)) & 1).bool() | (filter_of < 0).unsqueeze(-1)


def project_score_topk_reference(
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
    """The definition. Oracle, baseline, and the path of devices without a faster one; makes a [B, N] matrix.

    Args:
        user: [B, D] user vectors, of any length.
        latents: [B, H] latent queries; None: ω is 1 for all, whatever ``omega`` says.
        projection: needed with ``latents``.
        omega: [B] float32 in [0, 1].
        vectors, scales: the catalogue as it is stored, see :func:`decode`.
        k: at least 1; more than N is clipped to it.
        filters, filter_of: see :func:`allowed`; both or neither.
    """
    query = None if latents is None or projection is None else project(latents, projection)
    omega = torch.ones_like(omega) if query is None else omega
    fused, user, query_unit = fuse(user, query, omega)
    rows = decode(vectors, scales)
    scores = fused @ rows.T
    if filters is not None and filter_of is not None:
        scores = scores.masked_fill(~allowed(filters, filter_of, len(rows)), -torch.inf)
    ranked, order = scores.sort(dim=1, descending=True, stable=True)
    ranked, order = ranked[:, :k], order[:, :k]
    absent = ranked.isneginf()
    chosen = rows[order]
    user_part = omega.unsqueeze(-1) * torch.einsum("bd,bkd->bk", user, chosen)
    query_part = (1 - omega).unsqueeze(-1) * torch.einsum("bd,bkd->bk", query_unit, chosen)
    return Winners(
        order.masked_fill(absent, PADDING), ranked, user_part.where(~absent, 0.0), query_part.where(~absent, 0.0)
    )
