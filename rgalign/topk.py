"""Exact top-k of dense scores under the tie rule that holds everywhere: score descending, then row ascending.

Catalogue rows are in intent-id order, so "row ascending" is "intent id ascending". -0.0 and +0.0 tie. The definition is
:func:`topk_reference`; :func:`topk` is the same on C++ threads with the GIL released (csrc/topk.h).
"""

import os
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rgalign import _C
from rgalign.errors import DataError

# Scores a thread must have to be worth starting: about the time one start takes.
SCORES_PER_THREAD = 1 << 16

PADDING = -1


class TopK(NamedTuple):
    """The winners of each session, best first. Sessions with fewer than k candidates end in row -1, score -inf."""

    rows: NDArray[np.int64]  # [B, k]
    scores: NDArray[np.float32]  # [B, k]


def topk_reference(scores: NDArray[np.float32], k: int, candidates: NDArray[np.int64] | None = None) -> TopK:
    """The definition. Test oracle and benchmark baseline; arguments and answer as in :func:`topk`."""
    num_sessions, num_intents = scores.shape
    width = min(k, num_intents if candidates is None else candidates.shape[1])
    winners = TopK(
        np.full((num_sessions, width), PADDING, np.int64), np.full((num_sessions, width), -np.inf, np.float32)
    )
    for session in range(num_sessions):
        rows = np.arange(num_intents) if candidates is None else np.unique(candidates[session])
        rows = rows[rows != PADDING]
        ranked = rows[np.argsort(-scores[session, rows], kind="stable")][:width]
        winners.rows[session, : len(ranked)] = ranked
        winners.scores[session, : len(ranked)] = scores[session, ranked]
    return winners


def topk(
    scores: NDArray[np.float32],
    k: int,
    candidates: NDArray[np.int64] | None = None,
    num_threads: int | None = None,
) -> TopK:
    """The k best intents of each session, best first.

    Args:
        scores: [B, N] float32, C-contiguous; infinities are scores like any other.
        k: at least 1; more than there is to rank is clipped to it.
        candidates: [B, C] int64, C-contiguous: catalogue rows to rank, padded with -1 anywhere, each counted once.
            None ranks the whole catalogue. What is not ranked is not looked at.
        num_threads: threads to use; None takes as many as the cores allow and the work is worth. The answer is the
            same for any number.

    Returns:
        Rows and scores, [B, min(k, N)], or [B, min(k, C)] with candidates.

    Raises:
        DataError: wrong shape, dtype or layout; k or num_threads below 1; a NaN among the ranked scores or a candidate
            that is no row of the catalogue (the message names session and column).
    """
    _require_matrix("scores", scores, np.dtype(np.float32))
    _require_at_least_one("k", k)
    num_sessions, num_intents = scores.shape
    width = min(k, num_intents)
    if candidates is not None:
        _require_matrix("candidates", candidates, np.dtype(np.int64))
        if len(candidates) != num_sessions:
            raise DataError(
                where="topk candidates", required=f"{num_sessions} rows, as scores has", received=f"{len(candidates)}"
            )
        width = min(k, candidates.shape[1])
    if num_threads is None:
        num_threads = _worthwhile_threads(scores, candidates)
    _require_at_least_one("num_threads", num_threads)
    if num_sessions == 0 or width == 0:
        return topk_reference(scores, k, candidates)

    rows, values, fault, session, column = _C.topk(scores, width, candidates, min(num_threads, num_sessions))
    if fault == "nan_score":
        raise DataError(
            where=f"topk scores, row {session}, column {column}", required="a number or infinity", received="NaN"
        )
    if candidates is not None and fault == "candidate_out_of_range":
        raise DataError(
            where=f"topk candidates, row {session}, column {column}",
            required=f"-1 (padding) or a catalogue row below {num_intents}",
            received=str(candidates[session, column]),
        )
    assert rows is not None, fault
    assert values is not None
    return TopK(rows, values)


def _worthwhile_threads(scores: NDArray[np.float32], candidates: NDArray[np.int64] | None) -> int:
    work = scores.size if candidates is None else candidates.size
    return max(1, min(len(os.sched_getaffinity(0)), work // SCORES_PER_THREAD))


def _require_at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise DataError(where=f"topk {name}", required="at least 1", received=str(value))


def _require_matrix(name: str, array: NDArray[np.generic], dtype: np.dtype[np.generic]) -> None:
    if array.ndim != 2 or array.dtype != dtype or not array.flags.c_contiguous:
        layout = "C-contiguous" if array.flags.c_contiguous else "not C-contiguous"
        raise DataError(
            where=f"topk {name}",
            required=f"a C-contiguous [B, N] array of {dtype}",
            received=f"{layout} {array.dtype} of shape {array.shape}",
        )
