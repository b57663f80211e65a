"""The compiled extension (csrc/bindings.cpp). `rgalign.topk` and `rgalign.cpu_scorer` check its arguments."""

import numpy as np
from numpy.typing import NDArray

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
