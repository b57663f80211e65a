"""Configuration of stage 1: a ranker on logged sessions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from rgalign.config import Config
from rgalign.models import BaselineConfig, RankerConfig
from rgalign.training.optimiser import OptimiserConfig

# What decides neither the weights nor the metrics; files are identified by their content instead.
NOT_IDENTITY = frozenset(
    {
        "dataset",
        "latents",
        "semantic",
        "warm_start",
        "without",
        "memory_rows",
        "checkpoint_steps",
        "num_threads",
        "device",
    }
)


class Stage1Config(Config):
    """``rgalign train stage1``.

    Args:
        dataset: dataset directory; ``train`` is learned from, ``valid`` decides when to stop, ``test`` is not read.
        model: ``model: qe_rec`` or ``model: baseline`` and that ranker's keys.
        latents: directory of latent queries (``rgalign embed``); None trains QE-Rec with ω = 1.
        semantic: text vectors of the intents (``rgalign train hllm``); None judges intents by their ids.
        warm_start: finished run of the same ranker on the same training sessions whose weights training begins with
            (stage 3); its latent queries may be another reasoner's. None begins at random.
        trained: ``query`` moves the query tower alone: the other towers stay as ``warm_start`` has them.
        without: a selection (``rgalign train select``) whose sessions are left out, see used_sessions.py.
        batch_size: sessions a step, on each process.
        metric: of the validation sessions against their clicks; the weights of its best epoch are kept.
        patience: epochs without a better value before training stops.
        max_train: train on this many sessions, evenly spaced over the training weeks, the same for every seed.
        precision: ``bf16`` computes the towers under autocast; weights and optimiser stay float32.
        memory_rows: larger splits are streamed instead of encoded once; the result is the same.
        checkpoint_steps: save the state every so many steps, besides each epoch's end.
    """

    dataset: Path
    model: RankerConfig
    latents: Path | None = None
    semantic: Path | None = None
    warm_start: Path | None = None
    trained: Literal["all", "query"] = "all"
    without: Path | None = None
    optimiser: OptimiserConfig = OptimiserConfig()
    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=1024, ge=1)
    metric: str = Field(default="ndcg@3", pattern=r"^(auc|mrr_first|mrr_all|(recall|hit_rate|ndcg)@[135])$")
    patience: int = Field(default=5, ge=1)
    max_train: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    device: Literal["auto", "cpu"] = "auto"
    num_threads: int | None = Field(default=None, ge=1)
    memory_rows: int = Field(default=300_000, ge=0)
    checkpoint_steps: int = Field(default=500, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.model, BaselineConfig) and self.latents is not None:
            raise ValueError("the baseline reads no latent queries: leave out latents")
        if self.trained == "query" and (self.latents is None or self.warm_start is None):
            raise ValueError("trained: query goes on with the query tower of a warm_start, on latents: give both")
        return self

    def identity(self) -> dict[str, Any]:
        """What a run must agree on, besides its input files, to be the same run."""
        left_out = NOT_IDENTITY if self.trained == "query" else NOT_IDENTITY | {"trained"}  # older runs do not have it
        return self.model_dump(mode="json", exclude=set(left_out))
