"""What a batch and the queue may hold."""

from __future__ import annotations

import itertools
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from rgalign.config import Config


class BatcherConfig(Config):
    """Budgets of a batch and bounds of the queue. Counts of tokens include padding where they are computed ones."""

    max_rows: int = Field(default=32, ge=1, le=65_536)
    max_tokens: int = Field(default=8_192, ge=1, le=1 << 24)  # computed in one batch
    max_request_tokens: int = Field(default=512, ge=1, le=1 << 20)
    layout: Literal["packed", "padded"] = "packed"
    token_buckets: tuple[int, ...] = ()  # ascending; sizes that the model has: of the sum (packed) or a row (padded)
    row_buckets: tuple[int, ...] = ()  # ascending; numbers of rows that it has (padded)
    max_waste: float = Field(default=0.25, ge=0, lt=1)  # padding's share of computed tokens, where the queue allows
    max_passes: int = Field(default=4, ge=0)  # batches in which younger requests may overtake one of another length
    max_queue: int | None = Field(default=None, ge=1, le=1 << 20)  # None: Little's law, from the capacity measured
    queue_limit: int = Field(default=1_024, ge=1, le=1 << 20)  # of Little's law; memory is sized by it
    deadline_ms: float = Field(
        default=1_500.0, gt=0, allow_inf_nan=False
    )  # of requests that name none; in Little's law
    slack_ms: float = Field(default=100.0, ge=0, allow_inf_nan=False)
    max_per_client: int | None = Field(default=None, ge=1)  # unfinished requests
    bulk_every: int = Field(default=8, ge=1)  # batches without bulk while some waits; the next begins with it
    num_workers: int = Field(default=1, ge=1, le=64)  # threads that call the model
    row_shape: tuple[int, ...] | None = None  # of the model's rows; None: any
    isolate_faults: bool = True  # a batch that raises is run again in halves, so that only the rows at fault fail
    pad_token: int = 0
    first_position: int = Field(default=0, ge=0)  # position of every request's first token: a cached prefix's length

    @model_validator(mode="after")
    def _is_usable(self) -> Self:
        for name in ("token_buckets", "row_buckets"):
            buckets = getattr(self, name)
            if any(low >= high for low, high in itertools.pairwise((0, *buckets))):
                raise ValueError(f"{name} must be positive and ascending")
        if self.row_buckets and (self.layout == "packed" or self.row_buckets[-1] < self.max_rows):
            raise ValueError("row_buckets belong to the padded layout, and the last must hold max_rows")
        longest = min(
            (b for b in self.token_buckets or (self.max_request_tokens,) if b >= self.max_request_tokens), default=0
        )
        rows = self.row_buckets[0] if self.row_buckets else 1
        if not 0 < rows * longest <= self.max_tokens:
            raise ValueError("max_tokens and token_buckets must hold one request of max_request_tokens")
        if self.token_buckets and self.layout == "packed" and self.token_buckets[-1] < self.max_tokens:
            raise ValueError("the last of token_buckets must hold max_tokens")
        return self

    def limits(self) -> dict[str, Any]:
        """As the state machine's ``Limits`` (csrc/batcher/limits.h) has them: 0 where there is no bound."""
        of_the_shell = {"layout", "row_shape", "isolate_faults", "pad_token", "first_position"}
        unbounded = {"max_queue": self.max_queue or 0, "max_per_client": self.max_per_client or 0}
        return self.model_dump(exclude=of_the_shell) | unbounded | {"padded": self.layout == "padded"}
