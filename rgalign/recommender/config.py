"""How a Recommender serves; what it serves is the bundle's."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rgalign.config import Config


class BreakerConfig(Config):
    """When the reasoner is no longer asked, and when it is tried again.

    Args:
        failures: in a row until it opens.
        cooldown_ms: until a probe, and between probes.
        least_deadline_ms: a request that allowed less says nothing about the reasoner when it is late.
    """

    failures: int = Field(default=5, ge=1)
    cooldown_ms: float = Field(default=1_000.0, gt=0, allow_inf_nan=False)
    least_deadline_ms: float = Field(default=100.0, ge=0, allow_inf_nan=False)


class RecommenderConfig(Config):
    """Args:
    deadline_ms: of requests that name none.
    reserve_ms: of every deadline, kept for ranking after the reasoner.
    threads: of the reasoner on a CPU.
    torch_threads: of torch in this whole process, which runs the towers, a row at a time: more than one only wait for
        each other, awake, and take the reasoner's cores. None: as they are.
    device: that the reasoner runs on; docs/gpu_engine.md says which engines "cuda" computes.
    max_rows, max_tokens: of one batch. max_queue: None: Little's law. max_per_client: unfinished requests.
    cache_rows: latent queries kept by their prompt's tokens; 0: none.
    drain_ms: how long a bundle that was swapped out, or a closing recommender, serves what it has.
    """

    deadline_ms: float = Field(default=1_500.0, gt=0, allow_inf_nan=False)
    reserve_ms: float = Field(default=5.0, ge=0, allow_inf_nan=False)
    threads: int = Field(default=1, ge=1)
    torch_threads: int | None = Field(default=1, ge=1)
    device: Literal["cpu", "cuda"] = "cpu"
    max_rows: int = Field(default=32, ge=1, le=1 << 16)
    max_tokens: int = Field(default=8_192, ge=1, le=1 << 24)
    max_queue: int | None = Field(default=None, ge=1)
    max_per_client: int | None = Field(default=None, ge=1)
    cache_rows: int = Field(default=0, ge=0)
    drain_ms: float = Field(default=5_000.0, ge=0, allow_inf_nan=False)
    breaker: BreakerConfig = BreakerConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.reserve_ms >= self.deadline_ms:
            raise ValueError("reserve_ms must be less than deadline_ms")
        return self
