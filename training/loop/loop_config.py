"""The closed loop's configuration: a section for each step, checked against that step's own keys before anything runs.

A section holds what the step's command takes, without the paths that connect the steps: those are the loop's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from rgalign.config import Config, parse_config
from rgalign.errors import ConfigError
from rgalign.training.alignment.alignment_config import AlignmentConfig
from rgalign.training.embed import EmbedConfig
from rgalign.training.evaluate import EvaluationConfig
from rgalign.training.reward.reward_config import RewardConfig
from rgalign.training.selection.select_config import SelectConfig
from rgalign.training.stage1_config import Stage1Config
from rgalign.training.teachers.generate_config import GenerateConfig

Section = dict[str, Any]
SectionT = TypeVar("SectionT", bound=Config)
RANKER_MODEL = {"model": "qe_rec"}
OF_A_QUERY = {"part_weight", "title_weight"}  # keys of a loss that mean nothing to a ranker without a query
RECALIBRATION_EPOCHS = 5
RECALIBRATED = "query"  # the query tower alone: the others have learned their part, and only overfit (docs/loop.md)
NOWHERE = Path("unset")  # in place of the paths while sections are checked


class LoopConfig(Config):
    """``rgalign train all``.

    Args:
        dataset: dataset directory.
        semantic: text vectors of the intents (``rgalign train hllm``), of all rankers.
        seeds: of the rankers; the first one's configuration is that of the reward rankers.
        loops: rounds of alignment and recalibration at most; a further one begins only if the last was better.
        objective: what the reasoner is aligned with after SFT.
        recalibrate_on: the training sessions of stage 3 and its control; ``unaligned`` leaves out those of the
            selection, whose latent queries know their clicks.
        embed: of the reasoner that the loop begins with.
        stage1: keys of stage 1; the other rankers train with them too.
        baseline: laid over ``stage1`` for the baseline arm, whose loss is that of ``stage1.model`` unless it has one.
        generate, reward, select: keys of those steps.
        alignment: keys of both alignments; ``sft`` and ``align`` are laid over it.
        stage3: laid over ``stage1`` for the recalibration and its control alike.
        evaluation: of the report on the test sessions; its resampling also of the stop rule on validation.
    """

    dataset: Path
    semantic: Path | None = None
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    loops: int = Field(default=1, ge=1)
    objective: Literal["contrast", "dpo"] = "contrast"
    recalibrate_on: Literal["all", "unaligned"] = "all"
    embed: EmbedConfig = EmbedConfig()
    stage1: Section = Field(default_factory=dict)
    baseline: Section = Field(default_factory=dict)
    generate: Section = Field(default_factory=dict)
    reward: Section = Field(default_factory=dict)
    select: Section = Field(default_factory=dict)
    alignment: Section = Field(default_factory=dict)
    sft: Section = Field(default_factory=dict)
    align: Section = Field(default_factory=dict)
    stage3: Section = Field(default_factory=dict)
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(where="seeds", required="different seeds", received=repr(self.seeds))
        self.stage1_config(NOWHERE, seed=self.seeds[0])
        self.baseline_config(seed=self.seeds[0])
        self.recalibration_config(NOWHERE, NOWHERE, NOWHERE, seed=self.seeds[0])
        self.generate_config(NOWHERE)
        self.reward_config(NOWHERE, NOWHERE)
        self.select_config(NOWHERE)
        self.sft_config(NOWHERE, NOWHERE, NOWHERE)
        self.align_config(NOWHERE, NOWHERE, NOWHERE, NOWHERE)
        if self.embed.pooling == "external" or (self.objective == "contrast" and self.embed.pooling != "ltp"):
            required = "pooling ltp, the state that RG-CL moves (or mean or eos with objective: dpo)"
            raise ConfigError(where="section embed", required=required, received=self.embed.pooling)
        return self

    def baseline_config(self, *, seed: int) -> Stage1Config:
        """Its loss is that of stage 1, so that the arms differ in the model alone."""
        loss = self.stage1_config(NOWHERE, seed=seed).model.loss.model_dump(exclude=OF_A_QUERY)
        keys = {**self.stage1, "model": {"model": "baseline", "loss": loss}, **self.baseline}
        return self._ranker("baseline", keys, seed=seed)

    def stage1_config(self, latents: Path, *, seed: int) -> Stage1Config:
        keys = {"model": RANKER_MODEL, **self.stage1}
        return self._ranker("stage1", keys, latents=latents, seed=seed)

    def recalibration_config(self, latents: Path, warm_start: Path, selection: Path, *, seed: int) -> Stage1Config:
        """Stage 3, and the control beside it. No early stop unless asked for: both take the same number of steps."""
        without = selection if self.recalibrate_on == "unaligned" else None
        epochs = self.stage3.get("epochs", RECALIBRATION_EPOCHS)
        keys = {
            "model": RANKER_MODEL,
            **self.stage1,
            "trained": RECALIBRATED,
            "patience": epochs,
            **self.stage3,
            "epochs": epochs,
        }
        return self._ranker("stage3", keys, latents=latents, warm_start=warm_start, without=without, seed=seed)

    def _ranker(
        self,
        section: str,
        keys: Section,
        *,
        seed: int,
        latents: Path | None = None,
        warm_start: Path | None = None,
        without: Path | None = None,
    ) -> Stage1Config:
        own = {"dataset": self.dataset, "semantic": self.semantic, "seed": seed}
        steps = {"latents": latents, "warm_start": warm_start, "without": without}
        return _filled(Stage1Config, section, keys, {**own, **steps})

    def generate_config(self, latents: Path) -> GenerateConfig:
        return _filled(GenerateConfig, "generate", self.generate, {"dataset": self.dataset, "latents": latents})

    def reward_config(self, candidates: Path, ranker: Path) -> RewardConfig:
        return _filled(RewardConfig, "reward", self.reward, {"candidates": candidates, "ranker": ranker})

    def select_config(self, rewards: Path) -> SelectConfig:
        return _filled(SelectConfig, "select", self.select, {"rewards": rewards})

    def sft_config(self, selection: Path, rewards: Path, latents: Path) -> AlignmentConfig:
        """RG-SFT, from the reasoner of ``latents``."""
        return self._alignment("sft", self.sft, selection, rewards, latents, None)

    def align_config(self, selection: Path, rewards: Path, latents: Path, init: Path) -> AlignmentConfig:
        """RG-CL or RG-DPO, from the SFT run ``init``."""
        return self._alignment("align", self.align, selection, rewards, latents, init)

    def _alignment(
        self, section: str, keys: Section, selection: Path, rewards: Path, latents: Path, init: Path | None
    ) -> AlignmentConfig:
        paths = {"selection": selection, "rewards": rewards, "latents": latents, "init": init}
        return _filled(AlignmentConfig, section, {**self.alignment, **keys}, {"dataset": self.dataset, **paths})


def _filled(cls: type[SectionT], section: str, keys: Section, filled: Mapping[str, Any]) -> SectionT:
    """The step's configuration from a section and what the loop knows."""
    own = sorted(set(keys) & set(filled))
    if own:
        required = f"no key {own[0]!r}: the loop fills it in"
        raise ConfigError(where=f"section {section}", required=required, received=repr(keys[own[0]]))
    return parse_config(cls, {**keys, **filled}, where=f"section {section}")
