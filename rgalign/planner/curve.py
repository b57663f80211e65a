"""What a replica costs in time: measured milliseconds of a batch over its tokens, and the host's work round it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from rgalign.config import Config, parse_config
from rgalign.errors import DataError
from rgalign.files import write_atomic

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Curve(Config):
    """One replica, as it was measured (``rgalign plan measure``) or as you state it.

    Args:
        machine: what it ran on, and how. For the reader.
        tokens, ms: of batches; ascending tokens, medians of milliseconds.
        jitter: factors of the median that single batches took; drawn evenly.
        lengths: own tokens of requests; drawn evenly.
        longest: own tokens that a request may have.
        read_ms: of the host until the batcher has the request: reading, tokenising.
        tower_ms: of the host right after that, while the request waits and is reasoned: user tower, event loop.
        answer_ms: of the host after it: scoring, ranking, the answer.
        rows_per_batch: limit of a batch when it was measured.
        load_s: from the start of a process to its first answer.
        gpus: of a replica.
    """

    machine: str = ""
    tokens: tuple[Positive, ...] = Field(min_length=1)
    ms: tuple[Positive, ...] = Field(min_length=1)
    jitter: tuple[Positive, ...] = Field(default=(1.0,), min_length=1)
    lengths: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    longest: int = Field(default=512, ge=1)
    read_ms: NotNegative = 0.0
    tower_ms: NotNegative = 0.0
    answer_ms: NotNegative = 0.0
    rows_per_batch: int = Field(default=32, ge=1)
    load_s: NotNegative = 30.0
    gpus: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _is_a_curve(self) -> Self:
        if len(self.tokens) != len(self.ms):
            raise ValueError("tokens and ms must have one length")
        if any(low >= high for low, high in itertools.pairwise(self.tokens)):
            raise ValueError("tokens must ascend")
        if max(self.lengths) > self.longest:
            raise ValueError("lengths must be at most longest")
        return self

    @property
    def host_ms(self) -> float:
        """Of a request; the host does one thing at a time."""
        return self.read_ms + self.tower_ms + self.answer_ms

    @property
    def mean_length(self) -> float:
        """Own tokens of a request."""
        return sum(self.lengths) / len(self.lengths)

    @property
    def rows_per_second(self) -> float:
        """Of the worker alone, in full batches; without jitter's mean it would be too good."""
        mean_jitter = sum(self.jitter) / len(self.jitter)
        return 1_000 * self.rows_per_batch / (self.ms_of(self.rows_per_batch * self.mean_length) * mean_jitter)

    def ms_of(self, tokens: float) -> float:
        """As the simulation reads the curve: linear between the points, and beyond them with the nearest slope."""
        if len(self.tokens) == 1:
            return self.ms[0] * tokens / self.tokens[0]
        inner = self.tokens[1:-1]
        right = 1 + sum(point < tokens for point in inner)
        (x0, x1), (y0, y1) = self.tokens[right - 1 : right + 1], self.ms[right - 1 : right + 1]
        return max(y0 + (y1 - y0) / (x1 - x0) * (tokens - x0), 0.0)

    def write(self, path: Path) -> None:
        write_atomic(path, (json.dumps(self.model_dump(mode="json"), indent=1) + "\n").encode())


def read_curve(path: Path) -> Curve:
    """Raises:
    DataError: no file, not JSON, or not a curve: says which field.
    """
    if not path.is_file():
        raise DataError(where=str(path), required="a curve (rgalign plan measure writes one)", received="no such file")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(where=str(path), required="JSON", received=str(error)) from error
    if not isinstance(values, dict):
        raise DataError(where=str(path), required="a JSON object", received=type(values).__name__)
    return parse_config(Curve, values, where=str(path), error_type=DataError)
