"""One session to tensors: the bits of ``SessionEncoder.encode`` without a table.

Arrow kernels cost tens of microseconds a call however few the rows, several milliseconds for one session of twenty
features; at 300 requests a second that is all of a process's time. Here a session is looked up in dictionaries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rgalign.data.batch import SessionBatch
from rgalign.data.encode import SessionEncoder, transformed
from rgalign.schema import (
    FIRST,
    OOV,
    PAD,
    CategoricalFeature,
    GroupFeature,
    NumericalFeature,
    SequenceFeature,
)

Row = Mapping[str, Any]


class RowEncoder:
    """Encodes rows as ``rgalign.recommender.context.ContextReader.read`` gives them: every column is there, ids are
    strings or None, numbers finite or None, histories cut to ``max_length``, members of a group as long.

    Args:
        encoder: whose schema, statistics and counters are used.
    """

    def __init__(self, encoder: SessionEncoder) -> None:
        schema = encoder.schema
        self._encoder = encoder
        self._categorical = [f for f in schema.features if isinstance(f, CategoricalFeature)]
        self._numerical = [f for f in schema.features if isinstance(f, NumericalFeature)]
        self._sequences = [f for f in schema.features if isinstance(f, SequenceFeature)]
        self._groups = [f for f in schema.features if isinstance(f, GroupFeature)]
        members = [m for g in self._groups for m in g.members if m.kind == "categorical"]
        names = {each.vocabulary for kind in (self._categorical, self._sequences, members) for each in kind}
        self._codes_of = {
            name: {raw: FIRST + place for place, raw in enumerate(schema.vocabulary(name).names)} for name in names
        }

    def encode(self, row: Row) -> SessionBatch:
        """A batch of one, without candidates, click and latent query."""
        codes = [self._category(f.name, f.vocabulary, row[f.name], f.oov) for f in self._categorical]
        values = [self._standardised(f.name, [row[f.name]], f) for f in self._numerical]
        numbers = np.concatenate(values)[None] if values else np.zeros((1, 0), np.float32)
        groups = {group.name: self._group(group, row) for group in self._groups}
        return SessionBatch(
            categorical=torch.tensor([codes], dtype=torch.int64).reshape(1, len(codes)),
            numerical=torch.from_numpy(np.nan_to_num(numbers)),
            missing=torch.from_numpy(np.isnan(numbers)),
            sequences={f.name: self._sequence(f, row[f.name]) for f in self._sequences},
            groups={name: members for name, (members, _) in groups.items()},
            group_lengths={name: torch.tensor([length]) for name, (_, length) in groups.items()},
            candidates=None,
            clicked=torch.full((1, 1), -1, dtype=torch.int64),
            latent=None,
        )

    def _category(self, column: str, vocabulary: str, value: str | None, oov: str) -> int:
        if value is None:
            return PAD
        code = self._codes_of[vocabulary].get(value, OOV)
        if code == OOV:
            self._encoder.counters[f"{column} unknown"] += 1
            return PAD if oov == "drop" else OOV
        return code

    def _sequence(self, feature: SequenceFeature, values: Sequence[str | None]) -> Tensor:
        codes = (self._category(feature.name, feature.vocabulary, value, feature.oov) for value in values)
        return torch.tensor([[code for code in codes if code != PAD] or [PAD]], dtype=torch.int64)

    def _group(self, group: GroupFeature, row: Row) -> tuple[dict[str, Tensor], int]:
        steps = list(range(len(row[group.members[0].name])))
        if group.window_hours is not None and group.age is not None:
            ages = row[group.age]
            steps = [step for step in steps if ages[step] is not None and ages[step] <= group.window_hours]
        members: dict[str, Tensor] = {}
        for member in group.members:
            raw = row[member.name]
            if member.kind == "categorical":
                # Counted as in a table: whether or not a step is in the window.
                codes = [self._category(member.name, member.vocabulary, value, member.oov) for value in raw]
                members[member.name] = torch.tensor([[codes[step] for step in steps] or [PAD]], dtype=torch.int64)
                continue
            if member.name == group.age:
                values = np.maximum(_floats(raw), 0.0).astype(np.float32)
            else:
                values = self._standardised(member.name, raw, member)
            kept = values[steps] if steps else np.zeros(1, np.float32)
            members[member.name] = torch.from_numpy(kept[None])
        return members, len(steps)

    def _standardised(self, name: str, raw: Sequence[float | None], feature: Any) -> NDArray[np.float32]:
        bounds = (feature.minimum, feature.maximum) if isinstance(feature, NumericalFeature) else (None, None)
        return self._encoder.stats.standardise(name, transformed(_floats(raw), feature.transform, *bounds))


def _floats(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], np.float64)
