"""The compiled extension (csrc/python/). `rgalign.topk` and `rgalign.cpu_scorer` check its arguments."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

max_index_dim: int
max_index_magnitude: float
max_winners: int

def topk(
    scores: NDArray[np.float32], k: int, candidates: NDArray[np.int64] | None, num_threads: int
) -> tuple[NDArray[np.int64] | None, NDArray[np.float32] | None, str | None, int, int]: ...

class ScorerIndex:
    def __init__(self, rows: NDArray[np.float32], int8: bool) -> None: ...
    @staticmethod
    def check(rows: NDArray[np.float32]) -> tuple[int, int] | None: ...
    @property
    def num_bytes(self) -> int: ...

def instruction_sets() -> list[str]: ...
def score(
    index: ScorerIndex,
    user: NDArray[np.float32],
    latents: NDArray[np.float32] | None,
    weight: NDArray[np.float32] | None,
    bias: NDArray[np.float32] | None,
    omega: NDArray[np.float32],
    k: int,
    filters: NDArray[np.uint64] | None,
    filter_of: NDArray[np.int32] | None,
    num_threads: int,
    int8: bool,
    instructions: str,
) -> (
    tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]
    | tuple[str, int]
): ...
def simulate_cell(
    arrivals: NDArray[np.float64],
    *,
    limits: dict[str, Any],
    replicas: int,
    curve_tokens: Sequence[float],
    curve_ms: Sequence[float],
    jitter: Sequence[float],
    lengths: Sequence[int],
    read_ms: float,
    tower_ms: float,
    answer_ms: float,
    deadline_ms: float,
    reserve_ms: float,
    least_outstanding: bool,
    draw_lengths: bool,
    outages: list[tuple[int, float, float, float, bool]],
    seed: int,
) -> dict[str, Any]: ...

class Batcher:
    def __init__(self, **settings: Any) -> None: ...  # BatcherConfig.limits(), pad_token, first_position
    @property
    def forked(self) -> bool: ...
    def submit(
        self, tag: int, token_ids: ArrayLike, deadline_ms: float, client: int, bulk: bool
    ) -> int | tuple[int, float] | None: ...
    def cancel(self, request: int) -> bool: ...
    def take(
        self, worker: int, token_ids: NDArray[np.int32], positions: NDArray[np.int32], cu_seqlens: NDArray[np.int32]
    ) -> tuple[list[int], tuple[int, int, int, int, int]] | None: ...
    def repack(
        self,
        worker: int,
        first: int,
        last: int,
        token_ids: NDArray[np.int32],
        positions: NDArray[np.int32],
        cu_seqlens: NDArray[np.int32],
    ) -> tuple[int, int, int, int, int]: ...
    def finish(self, worker: int, outcomes: NDArray[np.uint8]) -> list[bool]: ...
    def wait_answers(self) -> list[tuple[int, int]] | None: ...
    def close(self, drain_ms: float) -> None: ...
    def counters(self) -> dict[str, Any]: ...

class EngineModel:
    def __init__(
        self,
        shape: dict[str, Any],
        embed_bf16: NDArray[np.uint16] | None,
        embed_fp32: NDArray[np.float32] | None,
        final_norm: NDArray[np.float32],
        inverse_frequencies: NDArray[np.float32],
        instructions: str,
    ) -> None: ...
    def add_layer(self, layer: dict[str, Any]) -> None: ...
    @property
    def num_bytes(self) -> int: ...

class EngineSession:
    def __init__(self, model: EngineModel, num_threads: int) -> None: ...
    def set_prefix(self, token_ids: NDArray[np.int32]) -> None: ...
    def forward(
        self,
        hidden: int,
        token_ids: NDArray[np.int32],
        depths: NDArray[np.int32],
        given: NDArray[np.int32],
        segments: NDArray[np.int32],
        runs: NDArray[np.int32],
        last: NDArray[np.int32],
    ) -> NDArray[np.float32]: ...
    @property
    def num_bytes(self) -> int: ...

def engine_instruction_sets() -> list[str]: ...
