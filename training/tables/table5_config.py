"""Configuration of table 5: exposure logs of A/B tests, and the judge of true intents."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from rgalign.config import Config
from rgalign.errors import ConfigError
from rgalign.metrics.online.experiment import Crossover
from rgalign.metrics.online.ratios import Unclear
from rgalign.metrics.online.sample_ratio import ALPHA
from rgalign.metrics.significance import LEVEL, RESAMPLES, Resampling
from rgalign.training.teachers.openai_config import OpenAIConfig


class ABTest(Config):
    """One test of two arms.

    Args:
        name: as the table says it, such as ``QE-Rec vs Baseline``.
        log: exposures, parquet or JSONL (rgalign.metrics.online.exposures); other arms in it are left out.
        treatment_share: of the users of both arms, as they were meant to be split.
    """

    name: str = Field(min_length=1, pattern=r"^\w[\w.+ -]*$")
    log: Path
    control: str
    treatment: str
    treatment_share: float = Field(default=0.5, gt=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.control == self.treatment:
            raise ConfigError(where=f"experiment {self.name!r}", required="two arms", received=repr(self.control))
        return self


class JudgeConfig(Config):
    """Who says what a session's user came for, from its transcript.

    Args:
        server: an OpenAI-compatible endpoint. Transcripts leave this machine for it.
        max_listed: catalogue entries in the prompt; of a larger catalogue those nearest in words to the transcript.
        max_chars: of a transcript; what follows is cut.
        max_sessions: judged in each experiment, drawn by a hash of their ids; None: all that have a transcript.
            Sessions with a human label are judged besides, for the agreement alone.
        budget: of each experiment; no further transcript is asked about when its answers, former ones too, have cost
            so much.
        min_kappa: least lower limit of the agreement with human labels at which IHR is concluded from.
    """

    server: OpenAIConfig
    max_listed: int = Field(default=150, ge=2)
    max_chars: int = Field(default=8000, ge=1)
    max_sessions: int | None = Field(default=None, ge=1)
    budget: float | None = Field(default=None, gt=0)
    min_kappa: float = Field(default=0.6, ge=0, le=1)


class Table5Config(Config):
    """``rgalign tables 5``.

    Args:
        dataset: whose catalogue the logs' intents are of.
        judge: None leaves out IHR.
        labels: true intents by people, parquet or JSONL with ``session_id`` and ``intent`` (null: none).
        ks: of CTR@K; hits_at: K of IHR@K.
        unclear: a session without a true intent is a miss (the paper's mean over all sessions), or left out.
        crossover: users seen in both arms end the run, or their sessions are dropped and counted.
        sample_ratio_alpha: p value below which the split of users is a mismatch and nothing is concluded.
        guardrails: metric -> by how much (share, not points) it may get worse at most.
        resamples, seed: of kappa's interval.
    """

    dataset: Path
    experiments: tuple[ABTest, ...] = Field(min_length=1)
    judge: JudgeConfig | None = None
    labels: Path | None = None
    ks: tuple[int, ...] = Field(default=(3,), min_length=1)
    hits_at: int = Field(default=3, ge=1)
    unclear: Unclear = "miss"
    crossover: Crossover = "refuse"
    sample_ratio_alpha: float = Field(default=ALPHA, gt=0, lt=1)
    guardrails: dict[str, float] = Field(default_factory=lambda: {"csat": 0.01})
    level: float = Field(default=LEVEL, gt=0, lt=1)
    resamples: int = Field(default=RESAMPLES, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [each.name for each in self.experiments]
        if len(set(names)) < len(names):
            raise ConfigError(where="experiments", required="different names", received=repr(names))
        if min(self.ks) < 1:
            raise ConfigError(where="ks", required="cut-offs of at least 1", received=repr(self.ks))
        if self.labels is not None and self.judge is None:
            raise ConfigError(where="labels", required="a judge to compare them with", received="none")
        unknown = sorted(set(self.guardrails) - set(self.metric_names))
        if unknown:
            required = f"of {', '.join(self.metric_names)}"
            raise ConfigError(where="guardrails", required=required, received=repr(unknown[0]))
        return self

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics in the order of the paper's columns; clicks per place stand behind them."""
        hits = () if self.judge is None else (f"ihr@{self.hits_at}",)
        places = (f"clicks_per_place@{k}" for k in self.ks)
        return ("csat", *(f"ctr@{k}" for k in self.ks), *hits, *places)

    @property
    def resampling(self) -> Resampling:
        return Resampling(self.resamples, self.seed, self.level)
