"""The numbers of a table: every row's metrics, and its paired differences from the rows it is compared with.

A session's metric is averaged over the row's rankers (ranker seeds x alignment seeds) before sessions or users are
drawn, so an interval covers the choice of sessions. How much the seeds differ stands beside it: ``ranker_sd`` between
ranker seeds and ``alignment_sd`` between alignment seeds, and of every difference the alignment seeds that agree with
its sign. With a row b of comparison, on the same sessions,

    relative          sum w (m - m_b) / sum w m_b              the paper's "Rel. Improv."
    error_reduction   sum w (m - m_b) / sum w (1 - m_b)        the paper's "Error Reduction"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rgalign.errors import DataError
from rgalign.metrics.ranking import GaucWeight, SessionMetrics
from rgalign.metrics.significance import Resampling, bootstrap, mean_intervals, paired_comparisons, seed_spread
from rgalign.training.tables.measure import MeasuredRow

PAPER_METRICS = ("auc", "recall@3", "recall@5", "ndcg@3", "ndcg@5", "mrr_all")
NOTHING = 1e-9  # a sum of weights that leaves nothing to divide by

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Cells:
    """Args: clusters: [S] what is drawn together; None: sessions one by one."""

    def __init__(
        self, rows: Mapping[str, MeasuredRow], gauc_weight: GaucWeight, clusters: Ints | None, how: Resampling
    ) -> None:
        first = next(iter(rows.values()))
        for name, row in rows.items():
            if row.session_ids != first.session_ids:
                raise DataError(where=f"row {name!r}", required="the sessions of the other rows", received="others")
        self._rows, self._gauc_weight, self._clusters, self._how = rows, gauc_weight, clusters, how
        one = next(iter(first.runs.values()))
        self.metrics = tuple(one.values)
        self._weights = np.stack([one.weights(name, gauc_weight) for name in self.metrics], axis=1)
        self._means = {name: _mean(list(row.runs.values())) for name, row in rows.items()}

    def metrics_of(self, row: str) -> dict[str, dict[str, Any]]:
        """Metric name -> mean, low, high, the mean of each run, and the spread between seeds."""
        found = mean_intervals(self._means[row], self._weights, self._clusters, self._how)
        runs = self._rows[row].runs
        cells = {}
        for name, interval in zip(self.metrics, found, strict=True):
            means = {key: metrics.mean(name, self._gauc_weight) for key, metrics in runs.items()}
            cells[name] = {
                "mean": interval.estimate,
                "low": interval.low,
                "high": interval.high,
                "runs": [{"ranker": key[0], "alignment": key[1], "mean": mean} for key, mean in means.items()],
                "ranker_sd": _spread(means, 0),
                "alignment_sd": _spread(means, 1),
            }
        return cells

    def difference(self, row: str, base: str) -> dict[str, dict[str, Any]]:
        """Metric name -> difference, low, high, p_value, verdict, relative, error_reduction, seeds that agree."""
        ours, theirs = self._means[row], self._means[base]
        compared = paired_comparisons(ours, theirs, self._weights, self._clusters, self._how)
        defined = ~np.isnan(ours)
        weights = np.where(defined, self._weights, 0.0)
        change = np.where(defined, self._weights * (ours - theirs), 0.0)
        before = np.where(defined, theirs, 0.0)
        relative = self._ratios(change, weights * before)
        reduction = self._ratios(change, weights * (1 - before))
        seeds = self._seed_differences(row, base)
        found = {}
        for column, (name, each) in enumerate(zip(self.metrics, compared, strict=True)):
            interval = each.difference
            found[name] = {
                "difference": interval.estimate,
                "low": interval.low,
                "high": interval.high,
                "p_value": each.p_value,
                "verdict": each.verdict,
                "relative": relative[column],
                "error_reduction": reduction[column],
                "alignment_seeds": {str(seed): float(values[column]) for seed, values in seeds.items()},
            }
        return found

    def _ratios(self, x: Floats, y: Floats) -> list[dict[str, float] | None]:
        kept = np.flatnonzero(y.sum(axis=0) > NOTHING * len(y))
        found: list[dict[str, float] | None] = [None] * x.shape[1]
        if len(kept):
            intervals = bootstrap(x[:, kept], y[:, kept], self._clusters, self._how)
            for column, interval in zip(kept, intervals, strict=True):
                found[column] = {"mean": interval.estimate, "low": interval.low, "high": interval.high}
        return found

    def _seed_differences(self, row: str, base: str) -> dict[int, Floats]:
        """Of each alignment seed the difference of the means [K], from the same seed of ``base`` if it has that."""
        found = {}
        for seed in sorted({key[1] for key in self._rows[row].runs if key[1] is not None}):
            theirs = self._of_seed(base, seed) or list(self._rows[base].runs.values())
            pair = [self._weighted(_mean(each)) for each in (self._of_seed(row, seed), theirs)]
            found[seed] = pair[0] - pair[1]
        return found

    def _of_seed(self, row: str, seed: int) -> list[SessionMetrics]:
        return [metrics for key, metrics in self._rows[row].runs.items() if key[1] == seed]

    def _weighted(self, values: Floats) -> Floats:
        weights = np.where(np.isnan(values), 0.0, self._weights)
        means: Floats = (weights * np.nan_to_num(values)).sum(axis=0) / weights.sum(axis=0)
        return means


def _mean(runs: Sequence[SessionMetrics]) -> Floats:
    """[S, K] each session's metrics averaged over the runs."""
    return np.asarray(np.mean([np.stack(list(run.values.values()), axis=1) for run in runs], axis=0), np.float64)


def _spread(means: Mapping[tuple[int, int | None], float], part: int) -> float | None:
    """Standard deviation between the seeds of one kind, each averaged over the other; None for one seed."""
    groups: dict[int | None, list[float]] = {}
    for key, mean in means.items():
        groups.setdefault(key[part], []).append(mean)
    return seed_spread([float(np.mean(each)) for each in groups.values()]) if len(groups) > 1 else None
