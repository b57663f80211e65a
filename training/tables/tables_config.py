"""Configuration of tables 2 to 4: the closed loop's sections, and what the tables add to them."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from rgalign.config import parse_config
from rgalign.errors import ConfigError
from rgalign.training.alignment.alignment_config import AlignmentConfig
from rgalign.training.embed import EmbedConfig
from rgalign.training.loop.loop_config import NOWHERE, LoopConfig, Section
from rgalign.training.selection.strategies import Strategy

ENGINE_POOLINGS = ("ltp", "eos")  # of backend engine
ALIGNMENT_SECTIONS = ("alignment", "sft", "align", "dpo")


class TablesConfig(LoopConfig):
    """``rgalign tables 2|3|4``. The sections of ``rgalign train all`` with one round, and

    Args:
        alignment_seeds: each is a whole alignment of its own: SFT, RG-CL, RG-DPO, latent queries, stage 3.
        dpo: laid over ``alignment`` for RG-DPO (table 2), as ``align`` is for RG-CL.
        poolings: of table 3, besides ``ltp``.
        pooled: laid over ``embed`` for those of them that the engine does not have, ``dtype: bfloat16`` to be faster.
        strategies: of table 4 with the frozen ranker of stage 1; recalibrated: those that stage 3 follows too.
    """

    alignment_seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    dpo: Section = Field(default_factory=dict)
    poolings: tuple[str, ...] = ("external", "mean", "eos")
    pooled: Section = Field(default_factory=dict)
    strategies: tuple[Strategy, ...] = Field(default=("V1", "V2", "V3", "V4"), min_length=1)
    recalibrated: tuple[Strategy, ...] = ("V1", "V2")

    @model_validator(mode="after")
    def _check_tables(self) -> Self:
        if len(set(self.alignment_seeds)) < len(self.alignment_seeds):
            raise ConfigError(where="alignment_seeds", required="different seeds", received=repr(self.alignment_seeds))
        if self.loops != 1:
            raise ConfigError(where="loops", required="1 (the paper's tables have one round)", received=str(self.loops))
        if self.embed.pooling != "ltp":
            required = "pooling ltp (table 3 adds the others)"
            raise ConfigError(where="section embed", required=required, received=self.embed.pooling)
        for section in ALIGNMENT_SECTIONS:
            keys: Section = getattr(self, section)
            if "seed" in keys:
                required = "no key 'seed': alignment_seeds has them"
                raise ConfigError(where=f"section {section}", required=required, received=repr(keys["seed"]))
        unknown = set(self.poolings) - {"external", "mean", "eos"}
        if unknown:
            required = "of external, mean, eos"
            raise ConfigError(where="poolings", required=required, received=repr(sorted(unknown)[0]))
        if not set(self.recalibrated) <= set(self.strategies):
            required = f"of the strategies {', '.join(self.strategies)}"
            raise ConfigError(where="recalibrated", required=required, received=repr(self.recalibrated))
        fixed = {"model", "pooling", "backend"} & set(self.pooled)
        if fixed:
            required = "no key 'model', 'pooling' or 'backend': the table has them"
            raise ConfigError(where="section pooled", required=required, received=repr(sorted(fixed)[0]))
        for pooling in self.poolings:
            self.pooled_embedding(pooling)
        self.dpo_config(NOWHERE, NOWHERE, NOWHERE, NOWHERE)
        return self

    def pooled_embedding(self, pooling: str) -> EmbedConfig:
        """As ``embed``, where the backend has this pooling; the definition has them all."""
        keys = {**self.embed.model_dump(), "pooling": pooling}
        if pooling not in ENGINE_POOLINGS:
            keys |= {"backend": "hf", **self.pooled}
        return parse_config(EmbedConfig, keys, where="section pooled")

    def dpo_config(self, selection: Path, rewards: Path, latents: Path, init: Path) -> AlignmentConfig:
        """RG-DPO, from the SFT run ``init``."""
        return self._alignment("dpo", self.dpo, selection, rewards, latents, init)
