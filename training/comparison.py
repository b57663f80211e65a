"""Comparison of models on the same sessions: means, differences from a baseline, slices, shares of a ceiling.

Everything that leaves here is a plain dictionary, as report.json holds it: an interval is ``{mean, low, high}``, a
difference ``{difference, low, high, verdict}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rgalign.metrics.ceiling import chance
from rgalign.metrics.ranking import GaucWeight, SessionMetrics
from rgalign.metrics.significance import (
    Interval,
    Resampling,
    bootstrap,
    mean_intervals,
    paired_comparisons,
    seed_mean,
    seed_spread,
)
from rgalign.metrics.slices import MIN_SESSIONS, Slice

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
RunMetrics = Mapping[tuple[str, int], SessionMetrics]  # (model, seed) -> the run's metrics
SLICES_AT_ONCE = 32  # in one bootstrap call: bounds its memory
PLOT_RESAMPLES = 2_000


@dataclass(frozen=True)
class ModelTables:
    """Per-session metrics of several models, each averaged over its seeds.

    Args:
        names: the K metrics.
        models: model -> [S, K], the baseline first, NaN where undefined (for the same sessions in each).
        weights: [S, K] weight of each session in each mean.
        clusters: [S] what is resampled together, None: sessions one by one.
    """

    names: tuple[str, ...]
    models: dict[str, Floats]
    weights: Floats
    baseline: str
    clusters: Ints | None
    how: Resampling

    @classmethod
    def of(
        cls, metrics: RunMetrics, baseline: str, gauc_weight: GaucWeight, clusters: Ints | None, how: Resampling
    ) -> ModelTables:
        one = next(iter(metrics.values()))
        order = sorted(dict.fromkeys(model for model, _ in metrics), key=lambda model: model != baseline)
        models = {
            model: seed_mean([columns(found) for (name, _), found in metrics.items() if name == model])
            for model in order
        }
        weights = np.stack([one.weights(name, gauc_weight) for name in one.values], axis=1)
        return cls(tuple(one.values), models, weights, baseline, clusters, how)

    @property
    def others(self) -> list[str]:
        return [model for model in self.models if model != self.baseline]


def columns(metrics: SessionMetrics) -> Floats:
    """[S, K] in the order of ``metrics.values``."""
    return np.stack(list(metrics.values.values()), axis=1)


def compare(tables: ModelTables, metrics: RunMetrics, gauc_weight: GaucWeight) -> list[dict[str, Any]]:
    """Of every model the means with intervals, each seed's mean, and the differences from the baseline."""
    names, count = tables.names, len(tables.models)
    stacked, weights = np.hstack(list(tables.models.values())), np.tile(tables.weights, count)
    means = mean_intervals(stacked, weights, tables.clusters, tables.how)
    differences = _differences(tables)
    report = []
    for position, model in enumerate(tables.models):
        seeds = {seed: found for (name, seed), found in metrics.items() if name == model}
        entry: dict[str, Any] = {"model": model, "seeds": list(seeds), "metrics": {}}
        for name, interval in zip(names, means[position * len(names) :], strict=False):
            per_seed = {str(seed): found.mean(name, gauc_weight) for seed, found in seeds.items()}
            spread = seed_spread(list(per_seed.values()))
            entry["metrics"][name] = {**_mean(interval), "seeds": per_seed, "seed_sd": spread}
        entry["against_baseline"] = differences.get(model)
        report.append(entry)
    return report


def _differences(tables: ModelTables) -> dict[str, dict[str, Any]]:
    count, width = len(tables.others), len(tables.names)
    if not count:
        return {}
    values = np.hstack([tables.models[model] for model in tables.others])
    baseline = np.tile(tables.models[tables.baseline], count)
    found = paired_comparisons(values, baseline, np.tile(tables.weights, count), tables.clusters, tables.how)
    return {
        model: {
            name: {**_difference(comparison.difference), "p_value": comparison.p_value}
            for name, comparison in zip(tables.names, found[position * width :], strict=False)
        }
        for position, model in enumerate(tables.others)
    }


def compare_slices(
    tables: ModelTables, slices: Sequence[Slice], metric: str, ceiling: SessionMetrics | None = None
) -> list[dict[str, Any]]:
    """One metric of every model in every slice large enough, with its difference from the baseline.

    With a ceiling also its mean there, ``ceiling``, and each model's ``share`` of it, None where it is zero.
    """
    column = tables.names.index(metric)
    top = np.zeros(len(tables.weights)) if ceiling is None else np.nan_to_num(ceiling.values[metric])
    values = {model: np.nan_to_num(table[:, column]) for model, table in tables.models.items()}
    base = values[tables.baseline]
    defined = ~np.isnan(tables.models[tables.baseline][:, column])
    weights = np.where(defined, tables.weights[:, column], 0.0)
    report: list[dict[str, Any]] = []
    for some in _batches([part for part in slices if (part.mask & defined).sum() >= MIN_SESSIONS]):
        inside = [np.where(part.mask, weights, 0.0) for part in some]
        x = [weight * x for weight in inside for value in values.values() for x in (value, value - base)]
        y = [weight for weight in inside for _ in range(2 * len(values))]
        found = iter(bootstrap(np.stack(x, axis=1), np.stack(y, axis=1), tables.clusters, for_plots(tables.how)))
        for part in some:
            cells = {model: {**_mean(next(found)), "against_baseline": _difference(next(found))} for model in values}
            cells[tables.baseline]["against_baseline"] = None
            sessions = int((part.mask & defined).sum())
            report.append({"family": part.family, "name": part.name, "sessions": sessions, "models": cells})
        if ceiling is not None:
            x = [weight * value for weight in inside for value in values.values()]
            y = [weight * top for weight in inside for _ in values]
            fewer = replace(tables, how=for_plots(tables.how))
            shares = iter(_shares(np.stack(x, axis=1), np.stack(y, axis=1), fewer))
            for entry, weight in zip(report[-len(some) :], inside, strict=True):
                entry["ceiling"] = float((weight * top).sum() / weight.sum())
                for cell in entry["models"].values():
                    cell["share"] = next(shares)
    return report


def _batches(slices: Sequence[Slice]) -> list[Sequence[Slice]]:
    return [slices[start : start + SLICES_AT_ONCE] for start in range(0, len(slices), SLICES_AT_ONCE)]


def for_plots(how: Resampling) -> Resampling:
    """Fewer draws: there are many slices, and their limits are read off a plot."""
    return replace(how, resamples=min(how.resamples, PLOT_RESAMPLES))


def ceiling_shares(tables: ModelTables, ceiling: SessionMetrics, ks: Sequence[int]) -> dict[str, Any]:
    """Of every metric the ceiling and chance, and each model's share of the ceiling and of what lies between.

    A share is None where there is nothing to share, as Recall@5 among five candidates.
    """
    top = columns(ceiling)
    random = np.stack(list(chance(ceiling, ks).values()), axis=1)
    weights = np.where(np.isnan(top) | np.isnan(random), 0.0, tables.weights)
    top, random = np.nan_to_num(top), np.nan_to_num(random)
    ceilings = bootstrap(weights * top, weights, tables.clusters, tables.how)
    chances = (weights * random).sum(axis=0) / weights.sum(axis=0)  # exact given the sessions
    models = {}
    for model, table in tables.models.items():
        values = np.nan_to_num(table)
        share = _shares(weights * values, weights * top, tables)
        learnable = _shares(weights * (values - random), weights * (top - random), tables)
        models[model] = {
            name: {"share": share[column], "learnable_share": learnable[column]}
            for column, name in enumerate(tables.names)
        }
    metrics = {
        name: {"ceiling": _mean(best), "chance": float(least)}
        for name, best, least in zip(tables.names, ceilings, chances, strict=True)
    }
    return {"metrics": metrics, "models": models}


def _shares(x: Floats, y: Floats, tables: ModelTables) -> list[dict[str, float] | None]:
    """Of each column sum x / sum y, with its interval."""
    kept = np.flatnonzero(y.sum(axis=0) > 1e-9 * len(y))
    found: list[dict[str, float] | None] = [None] * x.shape[1]
    if len(kept):
        for column, interval in zip(kept, bootstrap(x[:, kept], y[:, kept], tables.clusters, tables.how), strict=True):
            found[column] = _mean(interval)
    return found


def _mean(interval: Interval) -> dict[str, float]:
    return {"mean": interval.estimate, "low": interval.low, "high": interval.high}


def _difference(interval: Interval) -> dict[str, Any]:
    return {
        "difference": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "verdict": interval.verdict,
    }
