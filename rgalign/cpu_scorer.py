"""Scoring on a CPU: a batch of sessions against the whole catalogue, the k best of each, exactly (csrc/scorer.h).

    û = unit(user)   q̂ = unit(W e + b)   v = ω û + (1 − ω) q̂   score = v · î   parts: ω û·î and (1 − ω) q̂·î

Bitwise the same for any batch, number of threads, instruction set and scan. docs/cpu_scorer.md defines every number.
"""

from __future__ import annotations

import os
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rgalign import _C
from rgalign.errors import DataError

Scan: TypeAlias = Literal["auto", "fp32", "int8"]

# Multiply-adds a thread must have to be worth waking: a few times what waking one takes.
WORK_PER_THREAD = {"fp32": 1 << 18, "int8": 1 << 20}


FLOAT32, UINT64, INT32 = np.dtype(np.float32), np.dtype(np.uint64), np.dtype(np.int32)
# What this machine can score with, the best first; "portable" is always there.
INSTRUCTION_SETS = tuple(_C.instruction_sets())


class SupportsDLPack(Protocol):
    """A tensor of another library on the CPU, such as torch's; it is read in place."""

    def __dlpack__(self, **options: Any) -> Any: ...
    def __dlpack_device__(self) -> Any: ...


Floats: TypeAlias = NDArray[np.float32] | SupportsDLPack


class CpuIndex:
    """A packed catalogue: read-only, and safe to use from any number of threads.

    Args:
        rows: [N, D] float32, C-contiguous, in id order; unit vectors, if scores are to be cosines. Copied once.
        int8: also pack for 8-bit scans, which read a quarter of the bytes and answer the same; 9 bytes a value, not 4.

    Raises:
        DataError: wrong shape, dtype or layout; no rows; D above 4,096; a value that is not finite or beyond ±2^40 (the
            message names row and column).
    """

    def __init__(self, rows: Floats, *, int8: bool) -> None:
        array = _array("CpuIndex rows", rows, FLOAT32, "N", "D")
        if 0 in array.shape or array.shape[1] > _C.max_index_dim:
            raise DataError(
                where="CpuIndex rows",
                required=f"at least one row of 1 to {_C.max_index_dim} coordinates",
                received=f"shape {array.shape}",
            )
        fault = _C.ScorerIndex.check(array)
        if fault is not None:
            raise DataError(
                where=f"CpuIndex rows, row {fault[0]}, column {fault[1]}",
                required=f"a number within ±{_C.max_index_magnitude:.4g}",
                received=str(array[fault]),
            )
        self.num_rows, self.dim = array.shape
        self.int8 = int8
        self._packed = _C.ScorerIndex(array, int8)

    @property
    def num_bytes(self) -> int:
        """Memory of the panels."""
        return self._packed.num_bytes


class CpuScores(NamedTuple):
    """The winners of each session, best first: score descending, then row ascending.

    A session with fewer than k allowed rows ends in row -1, score -inf, parts 0. ``score`` is one dot product and the
    parts are others: they add up to it within rounding.
    """

    rows: NDArray[np.int64]  # [B, k'], k' = min(k, N)
    scores: NDArray[np.float32]  # [B, k']
    user_part: NDArray[np.float32]  # [B, k'] ω û·î
    query_part: NDArray[np.float32]  # [B, k'] (1 − ω) q̂·î
    num_rescored: NDArray[np.int64]  # [B] rows an int8 scan could not rule out; the only field that may depend on how


def cpu_score(
    index: CpuIndex,
    user: Floats,
    latents: Floats | None,
    weight: Floats | None,
    bias: Floats | None,
    omega: Floats,
    k: int,
    *,
    filters: NDArray[np.uint64] | None = None,
    filter_of: NDArray[np.int32] | None = None,
    num_threads: int | None = None,
    scan: Scan = "auto",
    instructions: str = "auto",
) -> CpuScores:
    """The k best intents of each session, with the GIL released.

    Arrays are NumPy's or any library's that speaks DLPack (torch), float32, C-contiguous, and are read in place.

    Args:
        index: the catalogue.
        user: [B, D] user vectors, of any length; û is made here.
        latents: [B, H] latent queries, not read where ω = 1; a row of zeros has no query part. None: ω is 1 for all.
        weight: [D, H] of the query tower (``QueryTower.folded``); needed with ``latents``.
        bias: [D], or None for 0.
        omega: [B] weight of the user part, in [0, 1].
        k: 1 to 64; more than N is clipped to it.
        filters: [F, ceil(N / 64)] bitsets: bit r % 64 of word r // 64 allows row r.
        filter_of: [B] the filter of each session, -1 for none; needed with ``filters``.
        num_threads: None takes as many as the cores allow and the work is worth.
        scan: "auto" is "int8" where the index has it. Both answer the same bits.
        instructions: one of ``INSTRUCTION_SETS``, for tests and benchmarks; "auto" is the first. The same bits.

    Raises:
        DataError: wrong shapes, dtypes or layouts; k, threads, scan or filter out of range; NaN or infinity in ω, a
            user vector, a latent query that is read, or its W e + b (the message names the row).
    """
    user = _array("cpu_score user", user, FLOAT32, "B", index.dim)
    size = len(user)
    omega = _array("cpu_score omega", omega, FLOAT32, size)
    if latents is None:
        weight = bias = None
    else:
        latents = _array("cpu_score latents", latents, FLOAT32, size, "H")
        if weight is None:
            raise DataError(where="cpu_score weight", required="[D, H], as there are latents", received="None")
        weight = _array("cpu_score weight", weight, FLOAT32, index.dim, latents.shape[1])
        bias = None if bias is None else _array("cpu_score bias", bias, FLOAT32, index.dim)
    filters, filter_of = _filters(filters, filter_of, size, index.num_rows)
    _require_within("k", k, _C.max_winners)
    int8 = _uses_int8(scan, index)
    if num_threads is None:
        num_threads = _worthwhile_threads(size * index.num_rows * index.dim, int8)
    _require_within("num_threads", num_threads, None)

    answer = _C.score(
        index._packed,
        user,
        latents,
        weight,
        bias,
        omega,
        min(k, index.num_rows),
        filters,
        filter_of,
        num_threads,
        int8,
        _instructions(instructions),
    )
    if len(answer) == 2:
        raise _fault(*answer, omega)
    return CpuScores(*answer)


def _array(where: str, value: Any, dtype: np.dtype[Any], *shape: int | str) -> NDArray[Any]:
    """The value as an array of that dtype and shape, in place; a letter stands for any size."""
    array = value if isinstance(value, np.ndarray) else np.from_dlpack(value)
    fits = array.ndim == len(shape) and array.dtype == dtype and array.flags.c_contiguous
    if fits:
        for wanted, actual in zip(shape, array.shape, strict=True):
            fits = fits and (wanted == actual or isinstance(wanted, str))
    if not fits:
        layout = "C-contiguous" if array.flags.c_contiguous else "not C-contiguous"
        raise DataError(
            where=where,
            required=f"a C-contiguous [{', '.join(map(str, shape))}] array of {dtype}",
            received=f"{layout} {array.dtype} of shape {array.shape}",
        )
    return array


def _filters(
    filters: NDArray[np.uint64] | None, filter_of: NDArray[np.int32] | None, size: int, num_rows: int
) -> tuple[NDArray[np.uint64] | None, NDArray[np.int32] | None]:
    if filters is None and filter_of is None:
        return None, None
    if filters is None or filter_of is None:
        raise DataError(where="cpu_score filters", required="filter_of with filters", received="one of the two")
    filters = _array("cpu_score filters", filters, UINT64, "F", -(-num_rows // 64))
    filter_of = _array("cpu_score filter_of", filter_of, INT32, size)
    wrong = np.flatnonzero((filter_of < -1) | (filter_of >= len(filters)))
    if wrong.size:
        raise DataError(
            where=f"cpu_score filter_of, row {wrong[0]}",
            required=f"-1 (none) or a filter below {len(filters)}",
            received=str(filter_of[wrong[0]]),
        )
    return filters, filter_of


def _uses_int8(scan: str, index: CpuIndex) -> bool:
    if scan not in ("auto", "fp32", "int8") or (scan == "int8" and not index.int8):
        raise DataError(
            where="cpu_score scan",
            required="auto, fp32 or, with an index that was packed for it, int8",
            received=f"{scan!r} (index with int8={index.int8})",
        )
    return index.int8 if scan == "auto" else scan == "int8"


def _instructions(name: str) -> str:
    if name != "auto" and name not in INSTRUCTION_SETS:
        raise DataError(
            where="cpu_score instructions", required=f"auto or one of {INSTRUCTION_SETS}", received=repr(name)
        )
    return INSTRUCTION_SETS[0] if name == "auto" else name


def _require_within(name: str, value: int, largest: int | None) -> None:
    if value < 1 or (largest is not None and value > largest):
        required = "at least 1" if largest is None else f"1 to {largest}"
        raise DataError(where=f"cpu_score {name}", required=required, received=str(value))


def _worthwhile_threads(work: int, int8: bool) -> int:
    return max(1, min(len(os.sched_getaffinity(0)), work // WORK_PER_THREAD["int8" if int8 else "fp32"]))


def _fault(kind: str, row: int, omega: NDArray[np.float32]) -> DataError:
    if kind == "omega":
        return DataError(where=f"cpu_score omega, row {row}", required="a weight in [0, 1]", received=str(omega[row]))
    if kind == "query":
        return DataError(
            where=f"cpu_score latents, row {row}", required="a finite W e + b", received="NaN or infinity in it"
        )
    return DataError(where=f"cpu_score {kind}, row {row}", required="finite values", received="NaN or infinity")
