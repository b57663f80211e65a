"""Steps that train rankers, one run a seed: baseline, stage 1, recalibration and its control; and the stop rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rgalign.data.dataset import Dataset
from rgalign.files import sha256_json
from rgalign.metrics.ranking import SessionMetrics, session_metrics
from rgalign.metrics.significance import cluster_codes, paired_comparisons, seed_mean
from rgalign.training.evaluate import EvaluationConfig
from rgalign.training.experiment import run_config
from rgalign.training.latents import LatentStore
from rgalign.training.loop.loop_config import LoopConfig
from rgalign.training.loop.outside_files import dataset_hashes, semantic_hash
from rgalign.training.loop.step import OUT, OnStep, Step
from rgalign.training.ranker_files import load_ranker
from rgalign.training.ranker_scores import score_split
from rgalign.training.stage1 import train_stage1
from rgalign.training.stage1_config import Stage1Config

VALID = "valid"


def seed_run(out: Path, seed: int) -> Path:
    return out / f"seed{seed}"


def ranker_step(name: str, configs: Mapping[int, Stage1Config], after: tuple[str, ...], loop: LoopConfig) -> Step:
    """One ranker a seed. Args: configs: of each seed."""

    def run(out: Path, on_step: OnStep | None) -> Mapping[str, Any]:
        return {
            f"seed{seed}": train_stage1(config, seed_run(out, seed), on_step=on_step)
            for seed, config in configs.items()
        }

    first = next(iter(configs.values()))
    settings = {f"seed{seed}": config.identity() for seed, config in configs.items()}
    return Step(
        name=name,
        config=first,
        settings=settings,
        after=after,
        run=run,
        outcome=lambda out: {"config": sha256_json(settings), **ranker_hashes(out, list(configs))},
        files=lambda: {**dataset_hashes(loop.dataset), "semantic": semantic_hash(loop.semantic)},
    )


def ranker_hashes(out: Path, seeds: Sequence[int]) -> dict[str, str]:
    return {f"seed{seed}": load_ranker(seed_run(out, seed)).hash for seed in seeds}


def verdict_step(name: str, loop: LoopConfig, step: str, before: str, root: Path) -> Step:
    """Whether the rankers of ``step`` are better on the validation sessions than those of ``before``."""
    metric = loop.recalibration_config(root, root, root, seed=loop.seeds[0]).metric
    runs, runs_before = ([seed_run(root / each / OUT, seed) for seed in loop.seeds] for each in (step, before))

    def run(out: Path, on_step: OnStep | None) -> Mapping[str, Any]:
        out.mkdir(parents=True, exist_ok=True)
        return validation_verdict(Dataset.open(loop.dataset), runs, runs_before, metric, loop.evaluation)

    settings = {"metric": metric, "evaluation": loop.evaluation.model_dump(mode="json")}
    return Step(name, loop.evaluation, settings, (step, before), run, outcome=lambda out: None)


def validation_verdict(
    dataset: Dataset, runs: Sequence[Path], before: Sequence[Path], metric: str, config: EvaluationConfig
) -> dict[str, Any]:
    """The paired difference on the validation sessions, each session's metric averaged over the seeds.

    Returns:
        metric, sessions, difference, low, high, p_value, verdict: ``better`` when the whole interval is above zero.
    """
    ours, theirs = ([_validation_metrics(run, dataset) for run in each] for each in (runs, before))
    clusters = None
    if config.clusters == "user":
        clusters = cluster_codes(dataset.table(VALID, ["user_id"]).column("user_id").to_pylist())
    columns = [seed_mean([found.values[metric] for found in each])[:, np.newaxis] for each in (ours, theirs)]
    weights = ours[0].weights(metric, config.gauc_weight)[:, np.newaxis]
    found = paired_comparisons(columns[0], columns[1], weights, clusters, config.resampling)[0]
    interval = found.difference
    return {
        "metric": metric,
        "sessions": len(columns[0]),
        "difference": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "p_value": found.p_value,
        "verdict": interval.verdict,
    }


def _validation_metrics(run: Path, dataset: Dataset) -> SessionMetrics:
    config = run_config(run)
    store = None if config.latents is None else LatentStore.open(config.latents)
    scores = score_split(load_ranker(run), dataset, VALID, store)
    return session_metrics(scores.total, scores.clicked, scores.candidates)
