"""IntentIndex: unit intent vectors with their ids and titles, immutable, in id order.

Rows stand in ascending id order, so that the row index is the tie-break order, as in IntentCatalog.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rgalign.cpu_scorer import CpuIndex
from rgalign.errors import DataError, ProvenanceError
from rgalign.index.precision import UNIT_TOLERANCE, Precision, encode, require_unit
from rgalign.kernels.score_reference import decode


class IntentIndex:
    """What scoring reads. Nothing in it changes, so any number of threads may use one.

    Args:
        ids: [N] unique, ascending.
        titles: [N].
        vectors: [N, D] as stored: float32, float16, bfloat16 or int8.
        scales: [N] float32 with int8, else None.
        provenance: what made the vectors, hash by name: ``intent_tower``, ``text_encoder``, ``catalogue``.
        generation: the number under which a holder published it, 0 before.

    Raises:
        DataError: no intents; ids that are empty, repeated or out of order; shapes or dtypes that do not fit; a stored
            row that is not a unit vector, with its number.
    """

    def __init__(
        self,
        ids: Sequence[str],
        titles: Sequence[str],
        vectors: Tensor,
        scales: Tensor | None,
        provenance: Mapping[str, str],
        generation: int = 0,
    ) -> None:
        self.ids, self.titles = tuple(ids), tuple(titles)
        self.vectors, self.scales = vectors.detach(), scales
        self.provenance = dict(provenance)
        self.generation = generation
        _check_names(self.ids, self.titles)
        _check_arrays(self.vectors, scales, len(self.ids))
        require_unit(self.vectors, scales, UNIT_TOLERANCE[vectors.dtype], "intent index")
        self._packing = threading.Lock()
        self._panels: list[CpuIndex] = []  # at most one; shared by all generations of these vectors

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dim(self) -> int:
        """D."""
        return self.vectors.shape[1]

    @property
    def decoded(self) -> Tensor:
        """[N, D] float32: the vectors that are ranked. float32 rows as they are, others are made anew each time."""
        return decode(self.vectors, self.scales)

    @cached_property
    def rows(self) -> dict[str, int]:
        """id -> row."""
        return {intent_id: row for row, intent_id in enumerate(self.ids)}

    def require(self, provenance: Mapping[str, str], where: str) -> None:
        """Refuses an index of another origin.

        Raises:
            ProvenanceError: the first name whose hash differs or is absent.
        """
        for name, wanted in provenance.items():
            found = self.provenance.get(name, "none")
            if found != wanted:
                raise ProvenanceError(where=where, required=f"{name} {wanted[:12]}", received=found[:12])

    def packed(self) -> CpuIndex:
        """The CPU scorer's panels, packed at the first call and kept."""
        with self._packing:
            if not self._panels:
                self._panels.append(CpuIndex(self.decoded.cpu().contiguous().numpy(), int8=True))
            return self._panels[0]

    def published(self, generation: int) -> IntentIndex:
        """The same index, memory included, under this number."""
        other = copy.copy(self)
        other.generation = generation
        return other

    def to(self, device: torch.device | str, *, pinned: bool = False) -> IntentIndex:
        """The index with its vectors on ``device``; ``pinned`` uploads through page-locked memory, without a pause."""

        def move(tensor: Tensor) -> Tensor:
            source = tensor.pin_memory() if pinned and tensor.device.type == "cpu" else tensor
            return source.to(device, non_blocking=pinned)

        if torch.device(device) == self.vectors.device:
            return self
        other = copy.copy(self)
        other.vectors = move(self.vectors)
        other.scales = None if self.scales is None else move(self.scales)
        return other

    def allow(self, ids: Iterable[str]) -> NDArray[np.uint64]:
        """[ceil(N / 64)] bitset of these intents: bit r % 64 of word r // 64.

        Raises:
            DataError: an id that is not in the index.
        """
        bits = np.zeros(-(-len(self) // 64) * 64, np.uint8)
        for intent_id in ids:
            if intent_id not in self.rows:
                raise DataError(where="intent filter", required="ids of the index", received=repr(intent_id))
            bits[self.rows[intent_id]] = 1
        return np.packbits(bits, bitorder="little").view("<u8").astype(np.uint64, copy=False)

    def deny(self, ids: Iterable[str]) -> NDArray[np.uint64]:
        """The bitset of all other intents. Bitsets of one index combine with ``&`` and ``|``."""
        return self.allow(self.ids) & ~self.allow(ids)


def build_index(
    ids: Sequence[str],
    titles: Sequence[str],
    vectors: Tensor,
    provenance: Mapping[str, str],
    precision: Precision = "float32",
) -> IntentIndex:
    """An index of unit vectors [N, D] float32, intents in any order.

    Raises:
        DataError: as IntentIndex, the row being that of ``vectors``; an unknown precision is a ConfigError.
    """
    if vectors.ndim != 2 or len(vectors) != len(ids) or len(titles) != len(ids):
        required = f"{len(ids)} rows of vectors and titles, one an id"
        received = f"vectors {list(vectors.shape)}, {len(titles)} titles"
        raise DataError(where="intent index", required=required, received=received)
    vectors = vectors.detach().float().cpu()
    require_unit(vectors, None, UNIT_TOLERANCE[torch.float32], "intent vectors")
    order = sorted(range(len(ids)), key=ids.__getitem__)
    stored, scales = encode(vectors[order], precision)
    return IntentIndex([ids[row] for row in order], [titles[row] for row in order], stored, scales, provenance)


def _check_names(ids: tuple[str, ...], titles: tuple[str, ...]) -> None:
    if not ids or len(titles) != len(ids):
        received = f"{len(ids)} ids, {len(titles)} titles"
        raise DataError(where="intent index", required="at least one intent, each with a title", received=received)
    before = ""
    for row, intent_id in enumerate(ids):
        if intent_id <= before:
            required = "ids that are not empty, unique and in ascending order"
            raise DataError(where=f"intent index, row {row}", required=required, received=repr(intent_id))
        before = intent_id


def _check_arrays(vectors: Tensor, scales: Tensor | None, num_rows: int) -> None:
    fits = vectors.ndim == 2 and len(vectors) == num_rows and vectors.shape[1] > 0 and vectors.dtype in UNIT_TOLERANCE
    if not fits or not vectors.is_contiguous():
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in UNIT_TOLERANCE)
        received = f"{vectors.dtype} of shape {list(vectors.shape)}"
        raise DataError(where="intent index", required=f"contiguous [{num_rows}, D] of {names}", received=received)
    right = (
        scales is not None and scales.shape == (num_rows,) and scales.dtype == torch.float32
        if vectors.dtype == torch.int8
        else scales is None
    )
    if not right:
        required = "scales [N] float32 with int8 vectors, and only with them"
        received = "none" if scales is None else f"{scales.dtype} of shape {list(scales.shape)}"
        raise DataError(where="intent index", required=required, received=received)
