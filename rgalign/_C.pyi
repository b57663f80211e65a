"""The compiled extension (csrc/bindings.cpp). Call `rgalign.topk.topk`, which checks its arguments."""

import numpy as np
from numpy.typing import NDArray

def topk(
    scores: NDArray[np.float32], k: int, candidates: NDArray[np.int64] | None, num_threads: int
) -> tuple[NDArray[np.int64] | None, NDArray[np.float32] | None, str | None, int, int]: ...
