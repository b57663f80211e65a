"""What differs between two indexes, and an index with further intents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rgalign.errors import DataError
from rgalign.files import sha256_json
from rgalign.index.intent_index import IntentIndex, build_index
from rgalign.index.precision import PRECISIONS, Precision

SAME_DIRECTION = 0.9999  # cosine; int8 storage of 128 values moves a vector by about 0.0001


@dataclass(frozen=True)
class IndexChanges:
    """Ids in order, but ``moved`` by cosine, the largest move first.

    Args:
        retitled: id -> (former title, title).
        moved: id -> cosine between its former vector and its vector.
        provenance: name -> (former hash, hash), where they differ.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    retitled: dict[str, tuple[str, str]]
    moved: dict[str, float]
    provenance: dict[str, tuple[str, str]]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.retitled or self.moved or self.provenance)


def compare(former: IntentIndex, index: IntentIndex, *, same_direction: float = SAME_DIRECTION) -> IndexChanges:
    """Args: same_direction: cosine from which on a vector has not moved.

    Raises:
        DataError: vectors of different widths.
    """
    if former.dim != index.dim:
        received = f"{former.dim} and {index.dim} values"
        raise DataError(where="index diff", required="vectors of one width", received=received)
    kept = [intent_id for intent_id in index.ids if intent_id in former.rows]
    before = [former.rows[intent_id] for intent_id in kept]
    after = [index.rows[intent_id] for intent_id in kept]
    cosines = (former.decoded[before].double() * index.decoded[after].double()).sum(dim=1).tolist()
    moved = {intent_id: cosine for intent_id, cosine in zip(kept, cosines, strict=True) if cosine < same_direction}
    titles = {
        intent_id: (former.titles[old], index.titles[row])
        for intent_id, old, row in zip(kept, before, after, strict=True)
        if former.titles[old] != index.titles[row]
    }
    hashes = {
        name: (former.provenance.get(name, "none"), index.provenance.get(name, "none"))
        for name in sorted(former.provenance.keys() | index.provenance.keys())
    }
    return IndexChanges(
        added=tuple(intent_id for intent_id in index.ids if intent_id not in former.rows),
        removed=tuple(intent_id for intent_id in former.ids if intent_id not in index.rows),
        retitled=titles,
        moved=dict(sorted(moved.items(), key=lambda item: item[1])),
        provenance={name: pair for name, pair in hashes.items() if pair[0] != pair[1]},
    )


def add_intents(
    index: IntentIndex, ids: Sequence[str], titles: Sequence[str], vectors: Tensor, provenance: Mapping[str, str]
) -> IntentIndex:
    """The index with further intents, in its own precision; the stored rows of the others stay bit for bit.

    Args:
        vectors: [M, D] float32 unit vectors of the further intents, by the intent tower that made the others.
        provenance: of the further vectors. ``catalogue`` may differ and becomes the hash of both; the rest must agree.

    Raises:
        DataError: an id that is in the index already, or as ``build_index``.
        ProvenanceError: vectors of another tower or text encoder.
    """
    shared = {name: value for name, value in provenance.items() if name != "catalogue"}
    index.require(shared, where="index add")
    for intent_id in ids:
        if intent_id in index.rows:
            raise DataError(where="index add", required="ids that are not in the index", received=repr(intent_id))
    further = build_index(ids, titles, vectors, provenance, _precision(index))
    if further.dim != index.dim:
        raise DataError(where="index add", required=f"vectors of {index.dim} values", received=f"{further.dim}")
    names, texts = (*index.ids, *further.ids), (*index.titles, *further.titles)
    order = sorted(range(len(names)), key=names.__getitem__)
    both = {"index": index.provenance.get("catalogue"), "added": provenance.get("catalogue")}
    scales = None
    if index.scales is not None and further.scales is not None:
        scales = torch.cat([index.scales.cpu(), further.scales])[order]
    return IntentIndex(
        [names[row] for row in order],
        [texts[row] for row in order],
        torch.cat([index.vectors.cpu(), further.vectors])[order],
        scales,
        {**index.provenance, "catalogue": sha256_json(both)},
    )


def _precision(index: IntentIndex) -> Precision:
    return next(name for name, dtype in PRECISIONS.items() if dtype == index.vectors.dtype)
