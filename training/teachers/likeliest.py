"""The intent of a given rank among weighted ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rgalign.training.teachers.click_history import NONE, Ints


def ranked(weights: NDArray[np.float64], rank: int) -> Ints:
    """[n] column of the rank-th largest weight of each row, the first of equal ones; NONE where none is left."""
    if rank > weights.shape[1]:
        return np.full(len(weights), NONE, np.int64)
    columns = np.argsort(-weights, axis=1, kind="stable")[:, rank - 1]
    left = np.take_along_axis(weights, columns[:, None], axis=1)[:, 0] > 0
    return np.where(left, columns, NONE)
