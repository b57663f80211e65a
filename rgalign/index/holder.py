"""IndexHolder: the index that a running service scores with, replaced under load.

A reader takes one reference and works with it to the end; what it answers names that index's generation. A swap checks
and packs the next index first and then assigns one attribute, which is atomic in Python: no reader waits, none sees
half of one and half of another. The former index is freed when its last reader lets go.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from rgalign.errors import DataError
from rgalign.index.intent_index import IntentIndex
from rgalign.index.storage import read_index


class IndexHolder:
    """Publishes indexes, one at a time.

    Args:
        index: the first, generation 1.
        same: names of the provenance that every later index must share with it. Vectors of another intent tower mean
            nothing to the query and user towers that are loaded.
    """

    def __init__(self, index: IntentIndex, *, same: Sequence[str] = ("intent_tower",)) -> None:
        self._required = {name: index.provenance[name] for name in same if name in index.provenance}
        self._writing = threading.Lock()
        _prepare(index)
        self._current = index.published(1)

    @property
    def current(self) -> IntentIndex:
        """The index to answer with. Take it once a request."""
        return self._current

    def swap(self, index: IntentIndex) -> int:
        """Publishes an index and returns its generation; on an error the former one stays.

        Raises:
            DataError: vectors of another width. ProvenanceError: of another origin.
        """
        index.require(self._required, where="index swap")
        if index.dim != self._current.dim:
            required = f"vectors of {self._current.dim} values"
            raise DataError(where="index swap", required=required, received=f"{index.dim}")
        _prepare(index)
        with self._writing:
            published = index.published(self._current.generation + 1)
            self._current = published
        return published.generation

    def swap_from(self, path: Path) -> int:
        """Reads an index directory, checks it and publishes it."""
        return self.swap(read_index(path, require=self._required))


def _prepare(index: IntentIndex) -> None:
    """What the first request would otherwise pay for."""
    _ = index.rows
    if index.vectors.device.type == "cpu":
        index.packed()
