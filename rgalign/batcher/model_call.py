"""One call of the model: a batch in, a row or the fault for each of its requests out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rgalign import _C
from rgalign.batcher.answers import NotAnswered, Outcome, not_answered
from rgalign.batcher.config import BatcherConfig
from rgalign.errors import DataError

Row: TypeAlias = NDArray[Any]
INT32 = np.dtype(np.int32)


class BatchBuffers(NamedTuple):
    """Memory that a worker's batches are packed into: int32, C-contiguous; pinned memory or a graph's inputs."""

    token_ids: NDArray[np.int32]  # [max_tokens]
    positions: NDArray[np.int32]  # [max_tokens]
    cu_seqlens: NDArray[np.int32]  # [max_rows + 1]; behind the batch's rows the last offset again


@dataclass(frozen=True)
class Batch:
    """What the model is called with; the arrays are views of the worker's buffers, valid until it returns.

    Packed: ``token_ids`` and ``positions`` are [T], T computed tokens; row r begins at ``cu_seqlens[r]``. Padded: they
    are [R, W], the sizes of the buckets, and row r has its tokens in the first places of row r.
    """

    token_ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    cu_seqlens: NDArray[np.int32]  # [B + 1] offsets of the true lengths
    num_rows: int  # B
    num_tokens: int  # without padding
    max_seqlen: int


Model: TypeAlias = Callable[[Batch], ArrayLike]


class ModelCall:
    """One batch in the model. Each request has a row or an error afterwards."""

    def __init__(
        self, core: _C.Batcher, config: BatcherConfig, model: Model, worker: int, buffers: BatchBuffers, num_rows: int
    ) -> None:
        self._core = core
        self._config = config
        self._model = model
        self._worker = worker
        self._buffers = buffers
        self.rows: list[Row | None] = [None] * num_rows
        self.errors: list[NotAnswered | None] = [None] * num_rows
        self.outcomes: NDArray[np.uint8] = np.zeros(num_rows, np.uint8)

    def rows_from(self, first: int, shape: tuple[int, int, int, int, int]) -> None:
        """Runs what is in the buffers; its first row is row ``first`` of the batch."""
        num_rows, num_tokens, computed_tokens, max_seqlen, width = shape
        token_ids = self._buffers.token_ids[:computed_tokens]
        positions = self._buffers.positions[:computed_tokens]
        if width:
            token_ids, positions = token_ids.reshape(-1, width), positions.reshape(-1, width)
        cu_seqlens = self._buffers.cu_seqlens[: num_rows + 1]
        batch = Batch(token_ids, positions, cu_seqlens, num_rows, num_tokens, max_seqlen)
        try:
            result = np.asarray(self._model(batch)).copy()  # the model may use its memory again
        except BaseException as error:  # another's code: whatever it raises, its requests get their answer
            self._raised(first, num_rows, error)
            return
        last = first + num_rows
        if not self._is_rows(result, num_rows):
            wanted = (
                f"floats of shape [{num_rows}, {'…' if self._config.row_shape is None else self._config.row_shape}]"
            )
            received = f"{result.dtype} of shape {result.shape}"
            shape_error = DataError(where="model", required=wanted, received=received)
            self._fault(range(first, last), Outcome.MODEL_SHAPE, shape_error)
            return
        self.rows[first:last] = result
        finite = np.isfinite(result)
        if not finite.all():
            broken = ~finite.reshape(num_rows, -1).all(axis=1)
            self._fault((first + np.flatnonzero(broken)).tolist(), Outcome.MODEL_NOT_FINITE, None)

    def _is_rows(self, result: NDArray[Any], num_rows: int) -> bool:
        expected = self._config.row_shape
        return (
            result.ndim > 0
            and len(result) == num_rows
            and result.dtype.kind == "f"
            and (expected is None or result.shape[1:] == expected)
        )

    def _raised(self, first: int, num_rows: int, error: BaseException) -> None:
        if num_rows == 1 or not self._config.isolate_faults:
            self._fault(range(first, first + num_rows), Outcome.MODEL_RAISED, error)
            return
        middle = first + num_rows // 2
        for begin, end in ((first, middle), (middle, first + num_rows)):
            self.rows_from(begin, self._core.repack(self._worker, begin, end, *self._buffers))

    def _fault(self, rows: Iterable[int], outcome: Outcome, cause: BaseException | None) -> None:
        for row in rows:
            self.rows[row] = None
            self.errors[row] = not_answered(outcome, cause)
            self.outcomes[row] = outcome


def checked_buffers(config: BatcherConfig, buffers: Sequence[BatchBuffers] | None) -> Sequence[BatchBuffers]:
    sizes = (config.max_tokens, config.max_tokens, config.max_rows + 1)
    if buffers is None:
        return [BatchBuffers(*(np.zeros(size, np.int32) for size in sizes)) for _ in range(config.num_workers)]
    if len(buffers) != config.num_workers:
        required = f"one for each of {config.num_workers} workers"
        raise DataError(where="Batcher buffers", required=required, received=str(len(buffers)))
    for own in buffers:
        for name, array, size in zip(BatchBuffers._fields, own, sizes, strict=True):
            if (
                array.dtype != INT32
                or array.shape != (size,)
                or not array.flags.c_contiguous
                or not array.flags.writeable
            ):
                received = f"{array.dtype} of shape {array.shape}"
                required = f"a writeable C-contiguous [{size}] array of int32"
                raise DataError(where=f"Batcher buffers, {name}", required=required, received=received)
    return buffers
