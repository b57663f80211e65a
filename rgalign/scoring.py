"""One call from towers' outputs to ranked intents; three implementations of one definition.

    score(e_ltp, z_u, query_tower, index, omega, k) -> rows, scores, user_part, query_part, and the ids by the index

reference   kernels/score_reference.py, the definition: torch, any device, any k; makes a [B, N] matrix
cpu         csrc/scorer.h: vectors in float32, an 8-bit scan with exact re-scoring; bitwise the same for any batch
triton      kernels/project_score_topk.py: everything in one to three launches on a GPU, no [B, N] matrix
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rgalign.cpu_scorer import cpu_score
from rgalign.errors import ConfigError, DataError
from rgalign.index.intent_index import IntentIndex
from rgalign.kernels.score_reference import (
    PADDING,
    Projection,
    Winners,
    fuse,
    project,
    project_score_topk_reference,
    rms_norm,
)
from rgalign.models.query_tower import QueryTower

__all__ = ["Filters", "Projection", "RankedIntents", "projection_of", "score", "score_matrix"]

Backend = Literal["auto", "reference", "cpu", "triton"]
MAX_FAST_K = 64  # of the C++ scorer and of the Triton kernel


@dataclass(frozen=True)
class Filters:
    """Which intents each session may be given.

    Args:
        bits: [F, ceil(N / 64)] bitsets, ``IntentIndex.allow`` and ``deny`` make rows of it.
        of: [B] int32 the row of ``bits`` for each session, -1 for no filter.
    """

    bits: NDArray[np.uint64]
    of: NDArray[np.int32]

    @classmethod
    def each(cls, filters: Sequence[NDArray[np.uint64] | None]) -> Filters | None:
        """One bitset a session, None for no filter; equal ones are kept once. None if no session has one."""
        kept: dict[bytes, int] = {}
        of = [-1 if bits is None else kept.setdefault(bits.tobytes(), len(kept)) for bits in filters]
        if not kept:
            return None
        rows = np.frombuffer(b"".join(kept), np.uint64).reshape(len(kept), -1)
        return cls(rows.copy(), np.asarray(of, np.int32))


@dataclass(frozen=True)
class RankedIntents:
    """The k' = min(k, N) best intents of each session, best first; ties by id.

    A session with fewer than k' allowed intents ends in row -1, score -inf, parts 0. ``score`` is one dot product and
    the parts are two: they add up to it within rounding (about 1e-7).
    """

    rows: Tensor  # [B, k'] int64, rows of the index
    scores: Tensor  # [B, k'] float32, as are the parts
    user_part: Tensor
    query_part: Tensor
    index: IntentIndex

    @property
    def generation(self) -> int:
        """Of the index that answered."""
        return self.index.generation

    @cached_property
    def ids(self) -> list[list[str]]:
        """Of each session, without the padding. Waits for a GPU."""
        return [[self.index.ids[row] for row in rows if row != PADDING] for rows in self.rows.tolist()]


def projection_of(tower: QueryTower, *, norm_weight: Tensor | None = None, norm_eps: float = 1e-6) -> Projection:
    """The query tower for serving, its standardisation folded into W and b.

    Args:
        norm_weight: [H] of the reasoner's final RMSNorm, if the states given to :func:`score` have not been through it.

    Raises:
        ConfigError: a tower with layer normalisation, which does not fold: give :func:`score` its output instead,
            with ``identity_projection``.
    """
    if tower.norm is not None:
        required = "input_norm none or standardize (layernorm does not fold into W and b)"
        raise ConfigError(where="query tower", required=required, received=tower.input_norm)
    weight, bias = tower.folded()
    return Projection(weight.detach().contiguous(), bias.detach().contiguous(), norm_weight, norm_eps)


def identity_projection(dim: int) -> Projection:
    """For latent queries that a query tower has projected already: q = e."""
    return Projection(torch.eye(dim))


def score(
    e_ltp: Tensor | None,
    z_u: Tensor,
    query_tower: Projection | None,
    index: IntentIndex,
    omega: Tensor | float,
    k: int,
    *,
    filters: Filters | None = None,
    backend: Backend = "auto",
    num_threads: int | None = None,
) -> RankedIntents:
    """The k best intents of each session.

    Args:
        e_ltp: [B, H] latent queries, or None where there are none: ω is then 1 for all.
        z_u: [B, D] user vectors, of any length.
        query_tower: see :func:`projection_of`; needed with ``e_ltp``.
        index: on the device of ``z_u``.
        omega: [B] or one number for all, weight of the user part in [0, 1]. Where it is 1, the answer is that of the
            user part alone and the session's latent query is not read: it may hold NaN.
        k: at least 1; more than N is clipped to it.
        filters: the intents each session may be given, applied while scanning.
        backend: "auto" takes "cpu" on a CPU and "triton" on a GPU where they are there and k is at most 64, else
            "reference".
        num_threads: of the "cpu" backend; None takes as many as the cores allow and the work is worth.

    Raises:
        DataError: shapes, devices or ranges that do not fit; on a CPU also NaN or infinity in what is read (the message
            names the session). On a GPU nothing is read back: such a session comes back as padding.
        ConfigError: a backend that cannot be used here.
    """
    backend = _chosen(backend, z_u, k)
    omega = _checked(e_ltp, z_u, query_tower, index, omega, k, filters)
    arguments = (e_ltp, z_u, query_tower, index, omega, k, filters)
    with torch.no_grad():
        if backend == "cpu":
            winners = _on_cpu(*arguments, num_threads)
        elif backend == "triton":
            winners = _on_gpu(*arguments)
        else:
            winners = _by_definition(*arguments)
    return RankedIntents(*winners, index)


@torch.no_grad()
def score_matrix(user: Tensor, query: Tensor | None, omega: Tensor | float, vectors: Tensor) -> Tensor:
    """[B, N] scores against every intent: what is evaluated and made into probabilities.

    Args:
        user, query: [B, D] user and projected query vectors, of any length; without a query ω is 1.
        vectors: [N, D] unit vectors (``IntentIndex.decoded``).
    """
    weights = torch.as_tensor(omega, dtype=torch.float32, device=user.device).expand(len(user))
    return fuse(user, query, weights)[0] @ vectors.T


def _by_definition(
    latents: Tensor | None,
    user: Tensor,
    projection: Projection | None,
    index: IntentIndex,
    omega: Tensor,
    k: int,
    filters: Filters | None,
) -> Winners:
    if user.device.type == "cpu":
        _require_finite(latents, user, projection, omega)
    bits, of = _filter_tensors(filters, user.device)
    return project_score_topk_reference(user, latents, projection, omega, index.vectors, index.scales, k, bits, of)


def _on_cpu(
    latents: Tensor | None,
    user: Tensor,
    projection: Projection | None,
    index: IntentIndex,
    omega: Tensor,
    k: int,
    filters: Filters | None,
    num_threads: int | None,
) -> Winners:
    states: Tensor | None = None
    weight = bias = None
    if latents is not None and projection is not None:
        states = (
            latents
            if projection.norm_weight is None
            else rms_norm(latents, projection.norm_weight, projection.norm_eps)
        )
        weight = _plain(projection.weight)
        bias = None if projection.bias is None else _plain(projection.bias)
    found = cpu_score(
        index.packed(),
        _plain(user),
        None if states is None else _plain(states),
        weight,
        bias,
        _plain(omega),
        k,
        filters=None if filters is None else filters.bits,
        filter_of=None if filters is None else filters.of,
        num_threads=num_threads,
    )
    return Winners(*map(torch.from_numpy, (found.rows, found.scores, found.user_part, found.query_part)))


def _on_gpu(
    latents: Tensor | None,
    user: Tensor,
    projection: Projection | None,
    index: IntentIndex,
    omega: Tensor,
    k: int,
    filters: Filters | None,
) -> Winners:
    from rgalign.kernels.project_score_topk import project_score_topk

    bits, of = _filter_tensors(filters, user.device)
    return project_score_topk(user, latents, projection, omega, index.vectors, index.scales, k, bits, of)


def _chosen(backend: Backend, user: Tensor, k: int) -> Backend:
    on_cpu, has_triton = user.device.type == "cpu", importlib.util.find_spec("triton") is not None
    if backend == "auto":
        if k > MAX_FAST_K:
            return "reference"
        if on_cpu:
            return "cpu"
        return "triton" if user.device.type == "cuda" and has_triton else "reference"
    usable = {"reference": True, "cpu": on_cpu, "triton": user.is_cuda and has_triton}
    if not usable.get(backend, False):
        required = f"auto or one of {', '.join(name for name, usable_here in usable.items() if usable_here)}"
        raise ConfigError(where="score backend", required=required, received=repr(backend))
    if backend != "reference" and k > MAX_FAST_K:
        raise DataError(where="score k", required=f"at most {MAX_FAST_K} with {backend}", received=str(k))
    return backend


def _checked(
    latents: Tensor | None,
    user: Tensor,
    projection: Projection | None,
    index: IntentIndex,
    omega: Tensor | float,
    k: int,
    filters: Filters | None,
) -> Tensor:
    """Checks everything but the values, which on a GPU would have to be waited for; returns ω as [B]."""
    if k < 1:
        raise DataError(where="score k", required="at least 1", received=str(k))
    _require_shape("z_u", user, "B", index.dim)
    if user.device != index.vectors.device:
        raise DataError(where="score index", required=f"on {user.device}", received=f"on {index.vectors.device}")
    omega = torch.as_tensor(omega, dtype=torch.float32, device=user.device)
    omega = omega.expand(len(user)) if omega.ndim == 0 else omega
    _require_shape("omega", omega, len(user))
    if latents is not None:
        if projection is None:
            raise DataError(where="score query_tower", required="a projection, as there is e_ltp", received="None")
        _require_shape("query_tower weight", projection.weight, index.dim, "H")
        _require_shape("e_ltp", latents, len(user), projection.weight.shape[1])
        if projection.bias is not None:
            _require_shape("query_tower bias", projection.bias, index.dim)
        if projection.norm_weight is not None:
            _require_shape("query_tower norm_weight", projection.norm_weight, projection.weight.shape[1])
    if filters is not None:
        _check_filters(filters, len(user), len(index))
    return omega.contiguous()


def _check_filters(filters: Filters, size: int, num_rows: int) -> None:
    width = -(-num_rows // 64)
    if filters.bits.ndim != 2 or filters.bits.shape[1] != width or filters.bits.dtype != np.uint64:
        received = f"{filters.bits.dtype} of shape {filters.bits.shape}"
        raise DataError(where="score filters", required=f"uint64 bitsets [F, {width}]", received=received)
    if filters.of.shape != (size,) or filters.of.dtype != np.int32:
        received = f"{filters.of.dtype} of shape {filters.of.shape}"
        raise DataError(where="score filters", required=f"int32 of shape [{size}]", received=received)
    wrong = np.flatnonzero((filters.of < -1) | (filters.of >= len(filters.bits)))
    if wrong.size:
        required = f"-1 (none) or a filter below {len(filters.bits)}"
        raise DataError(where=f"score filters, row {wrong[0]}", required=required, received=str(filters.of[wrong[0]]))


def _require_finite(latents: Tensor | None, user: Tensor, projection: Projection | None, omega: Tensor) -> None:
    wrong = ~((omega >= 0) & (omega <= 1))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise DataError(where=f"score omega, row {row}", required="a weight in [0, 1]", received=str(float(omega[row])))
    bad = {"z_u": ~user.isfinite().all(dim=1)}
    if latents is not None and projection is not None:
        bad["e_ltp"] = ~project(latents, projection).isfinite().all(dim=1) & (omega < 1)
    for name, rows in bad.items():
        if rows.any():
            row = int(rows.nonzero()[0])
            raise DataError(where=f"score {name}, row {row}", required="finite values", received="NaN or infinity")


def _require_shape(name: str, tensor: Tensor, *shape: int | str) -> None:
    fits = tensor.ndim == len(shape) and all(
        isinstance(wanted, str) or wanted == actual for wanted, actual in zip(shape, tensor.shape, strict=True)
    )
    if not fits or not tensor.is_floating_point():
        required = f"[{', '.join(map(str, shape))}] of floats"
        raise DataError(where=f"score {name}", required=required, received=f"{tensor.dtype} {list(tensor.shape)}")


def _filter_tensors(filters: Filters | None, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    if filters is None:
        return None, None
    bits = torch.from_numpy(np.ascontiguousarray(filters.bits).view(np.int64))
    return bits.to(device, non_blocking=True), torch.from_numpy(filters.of).to(device, non_blocking=True)


def _plain(tensor: Tensor) -> NDArray[np.float32]:
    """A view where it is float32 and contiguous already."""
    array: NDArray[np.float32] = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    return array
