"""Per-session ranking metrics: GAUC, Recall@K, HitRate@K, NDCG@K, both MRRs.

One session: candidates C, relevant intents R with grades y, and the rank of intent r among the candidates,

    rank(r) = 1 + #{c: s_c > s_r} + #{c: s_c = s_r and row(c) < row(r)}        (score descending, then row ascending)
    auc         = share of pairs (r, c not in R) with s_r > s_c, a tie counts 1/2
    recall@K    = #{r: rank(r) <= K} / |R|          hit_rate@K = 1 if some rank(r) <= K else 0
    ndcg@K      = sum_{r: rank(r) <= K} (2^y_r - 1) / log2(1 + rank(r))  /  the same of the best order
    mrr_first   = 1 / min rank                       mrr_all = mean over r of 1 / rank(r)   (MIND, FuxiCTR)

GAUC is the weighted mean of auc over sessions. A relevant intent that is no candidate cannot be ranked: it counts as
missed, 1 / rank = 0, and stays in |R|. A session without relevant intents has no metrics, and one whose candidates are
all relevant or all irrelevant has no auc: NaN, skipped by every mean and counted.

Ranks come from counting, not sorting: O(N) per relevant intent instead of O(N log N) per session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from rgalign.errors import DataError

PADDING = -1
KS = (1, 3, 5)
# Elements of one working array; a few such arrays are alive at a time, whatever the number of sessions.
CHUNK = 1 << 22

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Rows = NDArray[np.integer[Any]]
GaucWeight = Literal["impressions", "positives", "uniform"]


@dataclass(frozen=True)
class SessionMetrics:
    """The metrics of S sessions.

    Args:
        values: metric name -> [S] float64, NaN where undefined.
        impressions: [S] number of candidates.
        positives: [S] number of relevant intents.
        first_rank: [S] rank of the best relevant intent, 0 where none is ranked.
    """

    values: dict[str, Floats]
    impressions: Ints
    positives: Ints
    first_rank: Ints

    def weights(self, name: str, gauc_weight: GaucWeight = "impressions") -> Floats:
        """[S] weight of each session in the mean of ``name``: 1, and for auc what ``gauc_weight`` says."""
        if name == "auc" and gauc_weight == "impressions":
            return self.impressions.astype(np.float64)
        if name == "auc" and gauc_weight == "positives":
            return self.positives.astype(np.float64)
        return np.ones(len(self.positives))

    def mean(self, name: str, gauc_weight: GaucWeight = "impressions") -> float:
        """Weighted mean over the sessions where ``name`` is defined; NaN if there are none."""
        defined = ~np.isnan(self.values[name])
        weights = self.weights(name, gauc_weight)[defined]
        return float(weights @ self.values[name][defined] / weights.sum()) if weights.sum() else float("nan")

    def skipped(self, name: str) -> int:
        """Sessions where ``name`` is undefined."""
        return int(np.isnan(self.values[name]).sum())


def session_metrics(
    scores: NDArray[np.floating[Any]] | torch.Tensor,
    relevant: Rows,
    candidates: Rows | None = None,
    *,
    grades: Floats | None = None,
    ks: Sequence[int] = KS,
) -> SessionMetrics:
    """The metrics of every session, read in chunks of sessions so that ``scores`` may be memory-mapped.

    Args:
        scores: [S, N] of the catalogue's intents; infinities are scores like any other.
        relevant: [S, P] catalogue rows padded with -1; repeated rows count once.
        candidates: [S, C] catalogue rows padded with -1; None ranks the whole catalogue.
        grades: [S, P] relevance y > 0 of each row of ``relevant`` for NDCG; None: 1.

    Raises:
        DataError: a NaN among the ranked scores, rows outside the catalogue, shapes that do not fit.
    """
    array = scores_array(scores)
    _check(array, relevant, candidates, grades, ks)
    pairs = _relevant_pairs(relevant, grades)
    ranking = _rank(array, pairs, candidates)
    return _metrics(pairs, ranking, len(array), ks)


def scores_array(scores: NDArray[np.floating[Any]] | torch.Tensor) -> NDArray[np.floating[Any]]:
    """Scores as numpy; half precisions become float32, which keeps their order and their ties."""
    if isinstance(scores, torch.Tensor):
        scores = scores.detach().cpu()
        scores = (scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores).numpy()
    return scores


@dataclass(frozen=True)
class _Pairs:
    """T (session, relevant intent) pairs, ascending by session, then row."""

    session: Ints
    row: Ints
    grade: Floats


@dataclass(frozen=True)
class _Ranking:
    """Of each pair its rank and the candidates above it; of each session the number of candidates."""

    rank: Ints  # [T], 0: not a candidate
    above: Floats  # [T] candidates above, half of those tied
    impressions: Ints  # [S]


def _relevant_pairs(relevant: Rows, grades: Floats | None) -> _Pairs:
    session, position = np.nonzero(relevant != PADDING)
    row = relevant[session, position].astype(np.int64)
    grade = np.ones(len(row)) if grades is None else grades[session, position].astype(np.float64)
    order = np.lexsort((-grade, row, session))
    session, row, grade = session[order], row[order], grade[order]
    first = np.ones(len(row), np.bool_)
    first[1:] = (np.diff(session) != 0) | (np.diff(row) != 0)
    return _Pairs(session[first], row[first], grade[first])


def _rank(scores: NDArray[np.floating[Any]], pairs: _Pairs, candidates: Rows | None) -> _Ranking:
    num_sessions, num_intents = scores.shape
    width = num_intents if candidates is None else max(1, candidates.shape[1])
    step = max(1, CHUNK // width)
    rank, above = np.zeros(len(pairs.row), np.int64), np.zeros(len(pairs.row))
    impressions = np.full(num_sessions, num_intents, np.int64)
    for start in range(0, num_sessions, step):
        stop = min(start + step, num_sessions)
        block = np.asarray(scores[start:stop])
        columns = None
        if candidates is not None:
            columns = _unique_rows(candidates[start:stop])
            present = columns != PADDING
            impressions[start:stop] = present.sum(axis=1)
            block = np.take_along_axis(block, np.where(present, columns, 0), axis=1)
        else:
            present = None
        if np.isnan(block if present is None else block[present]).any():
            raise DataError(where="scores", required="no NaN", received=f"NaN in sessions {start} to {stop - 1}")
        if present is not None:
            block = np.where(present, block, np.nan)  # padding is neither above nor tied
        first, last = np.searchsorted(pairs.session, (start, stop))
        for low in range(first, last, step):
            part = slice(low, min(low + step, last))
            rank[part], above[part] = _count(block, columns, pairs.session[part] - start, pairs.row[part])
    return _Ranking(rank, above, impressions)


def _count(block: NDArray[np.floating[Any]], columns: Ints | None, session: Ints, row: Ints) -> tuple[Ints, Floats]:
    """Rank and weighted number of candidates above, for pairs (session of the block, row)."""
    others = block[session]  # [t, C]
    if columns is None:
        candidate = np.ones(len(row), np.bool_)
        place = row
        before = np.arange(block.shape[1]) < row[:, None]
    else:
        its_columns = columns[session]
        match = its_columns == row[:, None]
        candidate, place = match.any(axis=1), match.argmax(axis=1)
        before = its_columns < row[:, None]
    own = others[np.arange(len(row)), place][:, None]
    higher = np.count_nonzero(others > own, axis=1)
    tied = others == own
    num_tied = np.count_nonzero(tied, axis=1) - 1
    rank = 1 + higher + np.count_nonzero(tied & before, axis=1)
    return np.where(candidate, rank, 0), np.where(candidate, higher + 0.5 * num_tied, 0.0)


def _unique_rows(candidates: Rows) -> Ints:
    """[b, C] candidate rows ascending, repeated ones turned into padding."""
    columns = np.sort(candidates.astype(np.int64), axis=1)
    columns[:, 1:][columns[:, 1:] == columns[:, :-1]] = PADDING
    return columns


def _metrics(pairs: _Pairs, ranking: _Ranking, num_sessions: int, ks: Sequence[int]) -> SessionMetrics:
    def per_session(values: NDArray[Any]) -> Floats:
        sums = np.bincount(pairs.session, weights=values.astype(np.float64), minlength=num_sessions)
        return sums.astype(np.float64)  # without pairs, bincount gives integers

    def ratio(numerator: Floats, denominator: NDArray[Any]) -> Floats:
        defined = np.full(num_sessions, np.nan)
        np.divide(numerator, denominator, out=defined, where=denominator > 0)
        return defined

    positives = np.bincount(pairs.session, minlength=num_sessions)
    ranked = ranking.rank > 0
    reciprocal = np.divide(1.0, ranking.rank, out=np.zeros(len(ranked)), where=ranked)
    best = np.zeros(num_sessions)
    np.maximum.at(best, pairs.session, reciprocal)
    # A pair of two relevant intents adds 1 to `above` in any order, ties too: taken away, irrelevant ones remain.
    shown = per_session(ranked)
    wrong = per_session(ranking.above) - shown * (shown - 1) / 2
    values = {"auc": 1 - ratio(wrong, shown * (ranking.impressions - shown))}
    ideal_rank = _ideal_rank(pairs)
    gain = np.exp2(pairs.grade) - 1
    for k in ks:
        hit = ranked & (ranking.rank <= k)
        dcg = per_session(np.where(hit, gain / np.log2(1.0 + np.maximum(ranking.rank, 1)), 0))
        ideal = per_session(np.where(ideal_rank <= k, gain / np.log2(1.0 + ideal_rank), 0))
        values[f"recall@{k}"] = ratio(per_session(hit), positives)
        values[f"hit_rate@{k}"] = np.where(positives > 0, per_session(hit) > 0, np.nan)
        values[f"ndcg@{k}"] = ratio(dcg, ideal)
    values["mrr_first"] = np.where(positives > 0, best, np.nan)
    values["mrr_all"] = ratio(per_session(reciprocal), positives)
    first_rank = np.divide(1.0, best, out=np.zeros(num_sessions), where=best > 0)
    return SessionMetrics(values, ranking.impressions, positives, np.rint(first_rank).astype(np.int64))


def _ideal_rank(pairs: _Pairs) -> Ints:
    """[T] place of each pair when its session is ordered by grade."""
    order = np.lexsort((-pairs.grade, pairs.session))
    starts = np.searchsorted(pairs.session, pairs.session)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - starts + 1
    return rank


def _check(
    scores: NDArray[Any], relevant: Rows, candidates: Rows | None, grades: Floats | None, ks: Sequence[int]
) -> None:
    if scores.ndim != 2 or not np.issubdtype(scores.dtype, np.floating):
        raise DataError(where="scores", required="floats [S, N]", received=f"{scores.dtype} {scores.shape}")
    for name, rows in (("relevant", relevant), ("candidates", candidates)):
        if rows is None:
            continue
        if rows.ndim != 2 or len(rows) != len(scores):
            raise DataError(where=name, required=f"rows [{len(scores)}, *]", received=f"shape {rows.shape}")
        if rows.size and (rows.min() < PADDING or rows.max() >= scores.shape[1]):
            required = f"catalogue rows below {scores.shape[1]}, or {PADDING} as padding"
            raise DataError(where=name, required=required, received=f"{rows.min()} to {rows.max()}")
    if grades is not None and (grades.shape != relevant.shape or not (grades[relevant != PADDING] > 0).all()):
        required = f"positive grades of shape {relevant.shape}"
        raise DataError(where="grades", required=required, received=f"shape {grades.shape}, least {grades.min()}")
    if not ks or min(ks) < 1:
        raise DataError(where="ks", required="one or more cut-offs of at least 1", received=str(tuple(ks)))
