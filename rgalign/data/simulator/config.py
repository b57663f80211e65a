"""SimulatorConfig: every number a user may choose; all else is the written-down process (docs/simulator.md)."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from rgalign.config import Config

MIN_INTENTS = 200  # every question's general form is always in the catalogue


class SimulatorConfig(Config):
    """Size and seed of a simulated dataset.

    Args:
        num_sessions: over all three splits.
        num_intents: size of the catalogue, cold intents included.
        num_cold_intents: intents that exist only from the last week on.
        noise_rate: expected share of clicks that are noise, over all weeks.
        max_test_sessions: the annotated last week is thinned to this many (the paper annotates about 46,000).
        sessions_per_shard: rows of one parquet file. Part of the result: random streams belong to shards.
        seed: everything else follows from it.
    """

    num_sessions: int = Field(default=10_000, ge=100)
    num_intents: int = Field(default=1_000, ge=MIN_INTENTS, le=8_000)
    num_cold_intents: int = Field(default=50, ge=0)
    noise_rate: float = Field(default=0.18, ge=0.0, le=0.5)
    max_test_sessions: int = Field(default=46_000, ge=20)
    sessions_per_shard: int = Field(default=65_536, ge=256)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_cold_intents > self.num_intents // 4:
            raise ValueError(f"num_cold_intents may be a quarter of num_intents, {self.num_intents // 4}, at most")
        return self
