"""An experiment: several rankers, several seeds, one dataset, one report.

Each arm is a stage-1 configuration under a name; it is trained once a seed, its best epoch (on ``valid``) scores the
test sessions, and every arm is compared with the baseline arm on the same sessions with paired intervals. Finished
runs are not repeated, so an experiment can be interrupted and extended.

    out/<arm>/seed<k>/   the runs          out/report.json   out/report.html
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from rgalign.config import Config, load_config
from rgalign.data.dataset import Dataset
from rgalign.errors import ConfigError
from rgalign.training.evaluate import EvaluationConfig, evaluate
from rgalign.training.latents import LatentStore
from rgalign.training.ranker_files import load_ranker
from rgalign.training.ranker_scores import score_split
from rgalign.training.scores import RunScores
from rgalign.training.stage1 import train_stage1
from rgalign.training.stage1_config import Stage1Config


class ExperimentConfig(Config):
    """Rankers to compare.

    Args:
        arms: name -> stage-1 keys, laid over ``common``; ``dataset`` and ``seed`` come from here.
        common: stage-1 keys of all arms.
        baseline: the arm that the others are compared with.
    """

    dataset: Path
    arms: dict[str, dict[str, Any]] = Field(min_length=1)
    common: dict[str, Any] = Field(default_factory=dict)
    baseline: str
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.baseline not in self.arms:
            raise ValueError(f"baseline must be one of the arms: {', '.join(self.arms)}")
        for name in self.arms:
            self.stage1(name, self.seeds[0])
        return self

    def stage1(self, arm: str, seed: int) -> Stage1Config:
        """The configuration of one run; keys of an arm replace the common ones."""
        return Stage1Config.model_validate({**self.common, **self.arms[arm], "dataset": self.dataset, "seed": seed})


def run_experiment(
    config: ExperimentConfig, out: Path, *, announce: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Trains what is not trained yet, then evaluates; returns what ``report.json`` holds."""
    for seed in config.seeds:
        for arm in config.arms:
            announce(f"{arm}, seed {seed}")
            train_stage1(config.stage1(arm, seed), run_directory(out, arm, seed))
    runs = [
        score_run(run_directory(out, arm, seed), arm, config.dataset) for arm in config.arms for seed in config.seeds
    ]
    announce("comparing on the test sessions")
    return evaluate(runs, Dataset.open(config.dataset), out, config.baseline, config.evaluation)


def run_directory(out: Path, arm: str, seed: int) -> Path:
    return out / arm / f"seed{seed}"


def score_run(run_dir: Path, model: str, dataset_path: Path | None = None) -> RunScores:
    """Scores of a finished run's test and validation sessions.

    Args:
        dataset_path: the dataset to score; None: the one it was trained on.
    """
    config = run_config(run_dir)
    loaded = load_ranker(run_dir)
    dataset = Dataset.open(dataset_path or config.dataset)
    store = None if config.latents is None else LatentStore.open(config.latents)
    test = score_split(loaded, dataset, "test", store)
    valid = score_split(loaded, dataset, "valid", store)
    scale = float(loaded.ranker.lists.scale().detach())
    return RunScores(model, config.seed, test, valid, run_dir, scale)


def run_config(run_dir: Path) -> Stage1Config:
    path = run_dir / "config.yaml"
    if not path.is_file():
        required = "the directory of a training run (`rgalign train stage1` writes one)"
        raise ConfigError(where=str(run_dir), required=required, received="no config.yaml")
    return load_config(Stage1Config, path)
