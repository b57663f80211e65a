"""Sessions to tensors: parquet columns -> SessionBatch, one numpy pass a column and no loop over rows.

    categorical   code = 0 missing | 1 unknown | 2 + position in the vocabulary
    numerical     (transform(clip(x)) - mean) / std, clipped to [-10, 10]; missing is a flag
    histories     newest first, cut to max_length, then to the window, padded behind

The training split's means and deviations are NumericStats: fitted once, stored with the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from rgalign.data.batch import SessionBatch
from rgalign.data.ragged import Ints, Lookup, Ragged, flat, lists, numbers
from rgalign.errors import DataError
from rgalign.files import sha256_json
from rgalign.intents import IntentCatalog
from rgalign.schema import (
    FIRST,
    OOV,
    PAD,
    CategoricalFeature,
    FeatureSchema,
    GroupFeature,
    NumericalFeature,
    SequenceFeature,
    Transform,
)

__all__ = ["NumericStats", "SessionBatch", "SessionEncoder"]

CLIP = 10.0
Floats = NDArray[np.float64]


def transformed(
    values: Floats, transform: Transform, minimum: float | None = None, maximum: float | None = None
) -> Floats:
    """NaN stays NaN. Negative numbers under log1p are mirrored: sign(x) log1p(|x|)."""
    if minimum is not None or maximum is not None:
        values = np.clip(values, minimum, maximum)
    return np.sign(values) * np.log1p(np.abs(values)) if transform == "log1p" else values


def group_window(group: GroupFeature, table: pa.Table) -> tuple[dict[str, Ragged], NDArray[np.bool_]]:
    """The members' newest ``max_length`` values, and which steps lie in the group's window.

    Raises:
        DataError: members of unequal length.
    """
    members = {member.name: lists(table.column(member.name), group.max_length) for member in group.members}
    first_name, first = next(iter(members.items()))
    for name, member in members.items():
        if not np.array_equal(member.lengths, first.lengths):
            row = int(np.flatnonzero(member.lengths != first.lengths)[0])
            received = f"{first.lengths[row]} and {member.lengths[row]} in row {row}"
            raise DataError(where=f"group {group.name}", required=f"{first_name} and {name} as long", received=received)
    inside = np.ones(len(first.rows), np.bool_)
    if group.window_hours is not None and group.age is not None:
        inside = numbers(members[group.age].values) <= group.window_hours  # a missing age is outside
    return members, inside


@dataclass(frozen=True)
class NumericStats:
    """Mean and standard deviation, after the transform, of each numerical feature and group member but ages."""

    moments: Mapping[str, tuple[float, float]]

    @classmethod
    def fit(cls, tables: pa.Table | Iterable[pa.Table], schema: FeatureSchema) -> NumericStats:
        """One pass over the training split, as one table or batch by batch."""
        sums: dict[str, Floats] = {}
        for table in [tables] if isinstance(tables, pa.Table) else tables:
            for name, values in _numeric_columns(table, schema):
                present = values[~np.isnan(values)]
                powers = np.array([len(present), present.sum(), np.square(present).sum()])
                sums[name] = sums.get(name, np.zeros(3)) + powers
        return cls({name: _mean_std(powers) for name, powers in sums.items()})

    @property
    def hash(self) -> str:
        return sha256_json(self.to_json())

    def to_json(self) -> dict[str, Any]:
        return {name: {"mean": mean, "std": std} for name, (mean, std) in self.moments.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> NumericStats:
        return cls({name: (float(entry["mean"]), float(entry["std"])) for name, entry in values.items()})

    def standardise(self, name: str, values: Floats) -> NDArray[np.float32]:
        """NaN stays NaN."""
        if name not in self.moments:
            raise DataError(where=f"statistics of {name}", required="a mean and a deviation", received="none")
        mean, std = self.moments[name]
        return np.clip((values - mean) / std, -CLIP, CLIP).astype(np.float32)


def _numeric_columns(table: pa.Table, schema: FeatureSchema) -> Iterable[tuple[str, Floats]]:
    for feature in schema.features:
        if isinstance(feature, NumericalFeature):
            values = numbers(flat(table.column(feature.name)))
            yield feature.name, transformed(values, feature.transform, feature.minimum, feature.maximum)
        elif isinstance(feature, GroupFeature):
            members, inside = group_window(feature, table)
            for member in feature.members:
                if member.kind == "numerical" and member.name != feature.age:
                    yield member.name, transformed(numbers(members[member.name].values)[inside], member.transform)


def _mean_std(powers: Floats) -> tuple[float, float]:
    count, total, squares = powers
    mean = total / max(count, 1.0)
    variance = squares / max(count, 1.0) - mean**2
    # A constant feature keeps unit scale instead of dividing by rounding noise.
    return float(mean), float(np.sqrt(variance)) if variance > 1e-12 * max(1.0, mean**2) else 1.0


class SessionEncoder:
    """Encodes tables of sessions for one schema and catalogue.

    ``counters`` counts what was outside the vocabularies: ``COLUMN unknown``, ``candidates unknown``,
    ``clicked unknown`` and ``clicked outside candidates`` (such clicks teach nothing: they are on no list).
    """

    def __init__(self, schema: FeatureSchema, catalog: IntentCatalog, stats: NumericStats) -> None:
        self.schema = schema.bind(catalog)
        self.catalog = catalog
        self.stats = stats
        self.counters: Counter[str] = Counter()
        self._rows = Lookup(catalog.ids, first=0, missing=-1, unknown=-2)
        self._lookups: dict[str, Lookup] = {}

    @property
    def columns(self) -> list[str]:
        """What ``encode`` reads."""
        return [*self.schema.columns, "candidates", "clicked"]

    def encode(self, table: pa.Table, latents: NDArray[np.float32] | None = None) -> SessionBatch:
        """Encodes B sessions.

        Args:
            table: the schema's columns; ``candidates`` and ``clicked`` may be absent (whole catalogue, no click).
            latents: [B, D] latent queries of the same rows.

        Raises:
            DataError: a missing column, group members of unequal length, or another number of latents.
        """
        self._check(table, latents)
        features = self.schema.features
        categorical = [self._categorical(f, table) for f in features if isinstance(f, CategoricalFeature)]
        numerical = [self._numerical(f, table) for f in features if isinstance(f, NumericalFeature)]
        sequences = {f.name: self._sequence(f, table) for f in features if isinstance(f, SequenceFeature)}
        groups = {f.name: self._group(f, table) for f in features if isinstance(f, GroupFeature)}
        numbers_ = _columns(numerical, len(table), np.float32)
        candidates, clicked = self._labels(table)
        return SessionBatch(
            categorical=torch.from_numpy(_columns(categorical, len(table), np.int64)),
            numerical=torch.from_numpy(np.nan_to_num(numbers_)),
            missing=torch.from_numpy(np.isnan(numbers_)),
            sequences=sequences,
            groups={name: members for name, (members, _) in groups.items()},
            group_lengths={name: lengths for name, (_, lengths) in groups.items()},
            candidates=candidates,
            clicked=clicked,
            latent=None if latents is None else torch.from_numpy(np.ascontiguousarray(latents, np.float32)),
        )

    def _check(self, table: pa.Table, latents: NDArray[np.float32] | None) -> None:
        absent = sorted(set(self.schema.columns) - set(table.column_names))
        if absent:
            raise DataError(where="sessions", required=f"columns {', '.join(absent)}", received="no such column")
        if latents is not None and len(latents) != len(table):
            raise DataError(where="latent queries", required=f"{len(table)} rows", received=str(len(latents)))

    def _codes(self, column: str, vocabulary: str, values: pa.Array) -> Ints:
        if vocabulary not in self._lookups:
            names = self.schema.vocabulary(vocabulary).names
            self._lookups[vocabulary] = Lookup(names, first=FIRST, missing=PAD, unknown=OOV)
        codes = self._lookups[vocabulary](values)
        self._count(f"{column} unknown", codes == OOV)
        return codes

    def _count(self, what: str, mask: NDArray[np.bool_]) -> None:
        if count := int(np.count_nonzero(mask)):
            self.counters[what] += count

    def _categorical(self, feature: CategoricalFeature, table: pa.Table) -> Ints:
        codes = self._codes(feature.name, feature.vocabulary, flat(table.column(feature.name)))
        return np.where(codes == OOV, PAD, codes) if feature.oov == "drop" else codes

    def _numerical(self, feature: NumericalFeature, table: pa.Table) -> NDArray[np.float32]:
        values = numbers(flat(table.column(feature.name)))
        values = transformed(values, feature.transform, feature.minimum, feature.maximum)
        return self.stats.standardise(feature.name, values)

    def _sequence(self, feature: SequenceFeature, table: pa.Table) -> Tensor:
        raw = lists(table.column(feature.name), feature.max_length)
        codes = raw.replace(self._codes(feature.name, feature.vocabulary, raw.values))
        kept = codes.keep((codes.values != PAD) & ((codes.values != OOV) | (feature.oov == "unknown")))
        return torch.from_numpy(kept.pad(PAD))

    def _group(self, feature: GroupFeature, table: pa.Table) -> tuple[dict[str, Tensor], Tensor]:
        members, inside = group_window(feature, table)
        padded: dict[str, Tensor] = {}
        for member in feature.members:
            raw = members[member.name]
            values: NDArray[Any]
            if member.kind == "categorical":
                values = self._codes(member.name, member.vocabulary, raw.values)
                if member.oov == "drop":
                    values = np.where(values == OOV, PAD, values)
            elif member.name == feature.age:
                values = np.maximum(numbers(raw.values), 0.0).astype(np.float32)
            else:
                values = self.stats.standardise(member.name, transformed(numbers(raw.values), member.transform))
            padded[member.name] = torch.from_numpy(raw.replace(values).keep(inside).pad(0))
        steps = next(iter(members.values()))
        return padded, torch.from_numpy(np.bincount(steps.rows[inside], minlength=len(table)))

    def _labels(self, table: pa.Table) -> tuple[Tensor | None, Tensor]:
        clicked = self._intent_rows(table, "clicked")
        if "candidates" not in table.column_names:
            return None, torch.from_numpy(clicked.pad(-1))
        whole = lists(table.column("candidates")).lengths == 0
        if whole.all():
            return None, torch.from_numpy(clicked.pad(-1))
        candidates, size = self._intent_rows(table, "candidates"), len(self.catalog)
        listed = np.isin(clicked.rows * size + clicked.values, candidates.rows * size + candidates.values)
        self._count("clicked outside candidates", ~listed & ~whole[clicked.rows])
        padded = candidates.pad(-1)
        if whole.any():  # in a batch of both kinds the whole catalogue is written out
            padded = np.pad(padded, ((0, 0), (0, max(0, size - padded.shape[1]))), constant_values=-1)
            padded[whole, :size] = np.arange(size)
        return torch.from_numpy(padded), torch.from_numpy(clicked.pad(-1))

    def _intent_rows(self, table: pa.Table, column: str) -> Ragged:
        """Catalogue rows of a list column: unknown ids counted and dropped, repeated ones dropped."""
        if column not in table.column_names:
            return Ragged(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(len(table), np.int64))
        raw = lists(table.column(column))
        rows = raw.replace(self._rows(raw.values))
        self._count(f"{column} unknown", rows.values == -2)
        known = rows.keep(rows.values >= 0)
        first = np.zeros(len(known.values), np.bool_)
        first[np.unique(known.rows * len(self.catalog) + known.values, return_index=True)[1]] = True
        return known.keep(first)


def _columns(columns: list[Any], count: int, dtype: type) -> NDArray[Any]:
    return np.stack(columns, axis=1) if columns else np.zeros((count, 0), dtype)
