"""One change of a context: another value of a feature, or a shorter history.

    categorical       another value, or missing
    sequence, group   empty, without its newest step, or another value in the newest step

So what an order's status or a history does to the answer can be seen without typing JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rgalign.errors import DataError
from rgalign.playground.contexts import Context
from rgalign.schema import CategoricalFeature, FeatureSchema, GroupFeature, SequenceFeature

MISSING = "(missing)"
EMPTY = "(empty)"
WITHOUT_NEWEST = "(without the newest)"
MAX_VALUES = 200  # that a list offers; others can be typed into the JSON


@dataclass(frozen=True)
class Change:
    """What can be changed, and into what.

    Args:
        columns: of the context; ``edited`` is the one whose value an option replaces.
        values: raw id -> name.
        listed: histories, newest first.
    """

    label: str
    columns: tuple[str, ...]
    edited: str
    values: Mapping[str, str]
    listed: bool

    @property
    def options(self) -> list[tuple[str, str]]:
        """(what is shown, what ``apply`` takes)."""
        first = [(EMPTY, EMPTY), (WITHOUT_NEWEST, WITHOUT_NEWEST)] if self.listed else [(MISSING, MISSING)]
        counts = Counter(self.values.values())
        names = list(self.values.items())[:MAX_VALUES]
        return [*first, *((name if counts[name] == 1 else f"{name} ({raw})", raw) for raw, name in names)]

    def apply(self, context: Mapping[str, Any], option: str) -> Context:
        """A changed copy.

        Raises:
            DataError: not an option; a newest step to change or take away where there is none.
        """
        changed = dict(context)
        if option in (MISSING, EMPTY):
            for column in self.columns:
                changed.pop(column, None)
            return changed
        if option not in self.values and option != WITHOUT_NEWEST:
            raise DataError(where=f"change of {self.label}", required="one of the values", received=option[:60])
        if not self.listed:
            return {**changed, self.edited: option}
        lists = {column: _steps(context, column) for column in self.columns}
        if not all(lists.values()):
            raise DataError(where=f"change of {self.label}", required="a step in it", received="an empty history")
        if option == WITHOUT_NEWEST:
            return {**changed, **{column: values[1:] for column, values in lists.items()}}
        return {**changed, self.edited: [option, *lists[self.edited][1:]]}


def changes(schema: FeatureSchema) -> dict[str, Change]:
    """By label; what the reasoner reads comes first."""
    spoken = [feature for feature in schema.features if feature.verbalize is not None]
    found: list[Change] = []
    for feature in [*spoken, *(feature for feature in schema.features if feature.verbalize is None)]:
        if isinstance(feature, CategoricalFeature):
            values = schema.vocabulary(feature.vocabulary).names
            found.append(Change(feature.name, (feature.name,), feature.name, values, False))
        elif isinstance(feature, SequenceFeature):
            values = schema.vocabulary(feature.vocabulary).names
            found.append(Change(f"{feature.name}: newest", (feature.name,), feature.name, values, True))
        elif isinstance(feature, GroupFeature):
            for member in feature.members:
                if member.kind == "categorical":
                    values = schema.vocabulary(member.vocabulary).names
                    label = f"{feature.name}: newest {member.name}"
                    found.append(Change(label, feature.columns(), member.name, values, True))
    return {change.label: change for change in found}


def _steps(context: Mapping[str, Any], column: str) -> list[Any]:
    value = context.get(column)
    return list(value) if isinstance(value, list | tuple) else []
