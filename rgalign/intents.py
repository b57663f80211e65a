"""IntentCatalog: id, title and description of each knowledge-base entry.

Rows stand in ascending id order (plain string order), so the row index is the tie-break order everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rgalign.errors import DataError
from rgalign.files import atomic_path, sha256_json


@dataclass(frozen=True)
class IntentCatalog:
    """The intents that can be recommended.

    Args:
        ids: [N] unique, any order on entry; kept in ascending order.
        titles: [N] what a user reads.
        descriptions: [N] longer text, "" where there is none.
        extra: further string columns of length N, such as ``path``.

    Raises:
        DataError: an empty catalogue, a repeated or empty id, an empty title, columns of unequal length.
    """

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    descriptions: tuple[str, ...]
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.ids:
            raise DataError(where="intent catalogue", required="at least one intent", received="none")
        columns = {"title": self.titles, "description": self.descriptions, **self.extra}
        for name, values in columns.items():
            if len(values) != len(self.ids):
                required = f"{len(self.ids)} values of {name}"
                raise DataError(where="intent catalogue", required=required, received=str(len(values)))
        seen: set[str] = set()
        for row, (intent_id, title) in enumerate(zip(self.ids, self.titles, strict=True)):
            where = f"intent catalogue, row {row}"
            if not intent_id or not title.strip():
                received = f"id {intent_id!r}, title {title!r}"
                raise DataError(where=where, required="a non-empty id and title", received=received)
            if intent_id in seen:
                raise DataError(where=where, required="unique ids", received=f"{intent_id!r} again")
            seen.add(intent_id)
        self._sort()

    def _sort(self) -> None:
        order = sorted(range(len(self.ids)), key=self.ids.__getitem__)

        def arrange(values: Sequence[str]) -> tuple[str, ...]:
            return tuple(values[row] for row in order)

        object.__setattr__(self, "titles", arrange(self.titles))
        object.__setattr__(self, "descriptions", arrange(self.descriptions))
        object.__setattr__(self, "extra", {name: arrange(values) for name, values in self.extra.items()})
        object.__setattr__(self, "ids", arrange(self.ids))

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def rows(self) -> dict[str, int]:
        """id -> row."""
        return {intent_id: row for row, intent_id in enumerate(self.ids)}

    @cached_property
    def names(self) -> dict[str, str]:
        """id -> title, in row order: the vocabulary that schemas call ``intents``."""
        return dict(zip(self.ids, self.titles, strict=True))

    @cached_property
    def hash(self) -> str:
        """Hash of ids and all text."""
        return sha256_json([self.ids, self.titles, self.descriptions, dict(self.extra)])

    def text(self, row: int) -> dict[str, str]:
        """The texts of one intent by field, empty ones left out."""
        fields = {"title": self.titles[row], "description": self.descriptions[row]}
        fields.update({name: values[row] for name, values in self.extra.items()})
        return {name: value for name, value in fields.items() if value}

    def write_parquet(self, path: Path) -> None:
        columns = {"id": self.ids, "title": self.titles, "description": self.descriptions, **self.extra}
        table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary)

    @classmethod
    def read_parquet(cls, path: Path) -> IntentCatalog:
        """Reads columns ``id, title`` and, where present, ``description`` and further string columns."""
        if not path.is_file():
            raise DataError(where=str(path), required="the intent catalogue", received="no such file")
        table = pq.read_table(path)
        missing = {"id", "title"} - set(table.column_names)
        if missing:
            raise DataError(where=str(path), required="columns id and title", received=f"no {sorted(missing)}")
        columns = {
            name: tuple("" if value is None else str(value) for value in table.column(name).to_pylist())
            for name in table.column_names
        }
        ids, titles = columns.pop("id"), columns.pop("title")
        descriptions = columns.pop("description", ("",) * len(ids))
        return cls(ids, titles, descriptions, columns)
