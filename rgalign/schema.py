"""FeatureSchema: the one description of every feature. The user tower and the prompt both read it.

    schema.yaml -> FeatureSchema -> codes for the tower      (vocabulary: raw id -> 0 missing, 1 unknown, 2.. known)
                                 -> slots for the prompt     (feature -> "Entry Point: Shipping Page", paper Table 1)

Sequences and groups are stored and read newest first, so "drop the oldest" always means "drop from the end".
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, field_validator, model_validator

from rgalign.config import Config, parse_config
from rgalign.errors import SchemaError
from rgalign.files import read_json, sha256_json, write_atomic, write_json
from rgalign.intents import IntentCatalog

PAD, OOV, FIRST = 0, 1, 2
INTENTS = "intents"  # the vocabulary that is the catalogue itself
UNKNOWN = "Unknown"
INLINE_VOCABULARY = 64  # larger ones are written to a JSON file beside schema.yaml

Dimension = Literal["profile", "behaviour", "context"]
OovPolicy = Literal["unknown", "drop"]
Transform = Literal["log1p", "identity"]
Unit = Literal["hours", "days"]


class Vocabulary:
    """Known values of a categorical: raw id -> code and raw id -> string. Raw ids are compared as strings."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = dict(names)
        self.codes = {raw: code for code, raw in enumerate(self.names, start=FIRST)}
        self.size = len(self.names) + FIRST

    def code(self, raw: object) -> int:
        return PAD if raw is None else self.codes.get(str(raw), OOV)

    def string(self, raw: object) -> str | None:
        return self.names.get(str(raw))

    @cached_property
    def hash(self) -> str:
        return sha256_json(list(self.names.items()))


@dataclass(frozen=True)
class Slot:
    """One verbalised feature: ``head`` alone, or ``head (item, item, ...) tail`` with the newest item first."""

    name: str
    dimension: Dimension
    head: str
    items: tuple[str, ...] = ()
    tail: str = ""
    elided: bool = False

    @property
    def text(self) -> str:
        items = (*self.items, "...") if self.elided else self.items
        return self.head + ", ".join(items) + self.tail

    def drop_oldest(self) -> Slot:
        """Without the last item, marked with "..."."""
        return replace(self, items=self.items[:-1], elided=True)


class CategoricalFeature(Config):
    """One value out of a vocabulary. Column: string or integer; null is missing."""

    kind: Literal["categorical"] = "categorical"
    name: str
    dimension: Dimension
    vocabulary: str
    oov: OovPolicy = "unknown"
    pii: bool = False
    verbalize: str | None = None

    def columns(self) -> tuple[str, ...]:
        return (self.name,)

    def slot(self, session: Mapping[str, Any], schema: FeatureSchema) -> Slot | None:
        assert self.verbalize is not None
        value = categorical_text(session.get(self.name), schema.vocabulary(self.vocabulary), self.oov)
        if value is None:
            return None
        return Slot(self.name, self.dimension, render(self.verbalize, {"value": value}))


class NumericalFeature(Config):
    """A number. Column: integer or float; null is missing. ``unit`` makes {value} read as a duration."""

    kind: Literal["numerical"] = "numerical"
    name: str
    dimension: Dimension
    transform: Transform = "identity"
    minimum: float | None = None
    maximum: float | None = None
    unit: Unit | None = None
    pii: bool = False
    verbalize: str | None = None

    def columns(self) -> tuple[str, ...]:
        return (self.name,)

    def slot(self, session: Mapping[str, Any], schema: FeatureSchema) -> Slot | None:
        assert self.verbalize is not None
        value = numerical_text(session.get(self.name), self.unit)
        if value is None:
            return None
        return Slot(self.name, self.dimension, render(self.verbalize, {"value": value}))


class SequenceFeature(Config):
    """Values out of one vocabulary, newest first. Column: list; null is empty."""

    kind: Literal["sequence"] = "sequence"
    name: str
    dimension: Dimension
    vocabulary: str
    oov: OovPolicy = "drop"
    max_length: int = Field(gt=0)
    shown: int | None = Field(default=None, gt=0)
    item: str = "'{value}'"
    empty: str | None = None
    pii: bool = False
    verbalize: str | None = None

    def columns(self) -> tuple[str, ...]:
        return (self.name,)

    def slot(self, session: Mapping[str, Any], schema: FeatureSchema) -> Slot | None:
        vocabulary = schema.vocabulary(self.vocabulary)
        raw = as_list(session.get(self.name), self.max_length)
        texts = (categorical_text(value, vocabulary, self.oov) for value in raw)
        items = [render(self.item, {"value": text}) for text in texts if text is not None]
        return list_slot(self, items)


class CategoricalMember(Config):
    kind: Literal["categorical"] = "categorical"
    name: str
    vocabulary: str
    oov: OovPolicy = "unknown"

    def text(self, raw: object, schema: FeatureSchema) -> str | None:
        return categorical_text(raw, schema.vocabulary(self.vocabulary), self.oov)


class NumericalMember(Config):
    kind: Literal["numerical"] = "numerical"
    name: str
    transform: Transform = "log1p"
    unit: Unit | None = None

    def text(self, raw: object, schema: FeatureSchema) -> str | None:
        return numerical_text(raw, self.unit)


Member = Annotated[CategoricalMember | NumericalMember, Field(discriminator="kind")]


class GroupFeature(Config):
    """Coupled sequences, such as intents, hours ago and status: one list column a member, equal lengths, newest first.

    ``age`` names the member that holds hours before the session's time; with ``window_hours`` older steps are not
    used, by the tower or the prompt.
    """

    kind: Literal["group"] = "group"
    name: str
    dimension: Dimension
    members: tuple[Member, ...] = Field(min_length=1)
    age: str | None = None
    window_hours: float | None = Field(default=None, gt=0)
    max_length: int = Field(gt=0)
    shown: int | None = Field(default=None, gt=0)
    item: str | None = None
    empty: str | None = None
    pii: bool = False
    verbalize: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        numerical = {member.name for member in self.members if member.kind == "numerical"}
        if self.age is not None and self.age not in numerical:
            raise ValueError(f"group {self.name}: age must name a numerical member, got {self.age!r}")
        if self.window_hours is not None and self.age is None:
            raise ValueError(f"group {self.name}: window_hours needs age")
        if (self.verbalize is None) != (self.item is None):
            raise ValueError(f"group {self.name}: verbalize and item go together")
        return self

    def columns(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.members)

    def slot(self, session: Mapping[str, Any], schema: FeatureSchema) -> Slot | None:
        assert self.item is not None
        limit = self.shown or self.max_length
        items: list[str] = []
        total = 0
        for step in self._steps(session):
            texts = {member.name: member.text(step[member.name], schema) for member in self.members}
            if any(text is None and f"{{{name}}}" in self.item for name, text in texts.items()):
                continue
            total += 1
            if total <= limit:
                items.append(render(self.item, {name: text or "" for name, text in texts.items()}))
        return list_slot(self, items, elided=total > limit)

    def _steps(self, session: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        columns = {member.name: as_list(session.get(member.name), self.max_length) for member in self.members}
        for values in zip(*columns.values(), strict=True):
            step = dict(zip(columns, values, strict=True))
            hours = step[self.age] if self.age is not None else None
            if self.window_hours is None or (hours is not None and hours <= self.window_hours):
                yield step


Feature = Annotated[CategoricalFeature | NumericalFeature | SequenceFeature | GroupFeature, Field(discriminator="kind")]


class FeatureSchema(Config):
    """All features of a dataset, in prompt order, and the vocabularies that name their values."""

    name: str
    description: str = ""
    features: tuple[Feature, ...] = Field(min_length=1)
    vocabularies: dict[str, dict[str, str]] = Field(default_factory=dict)

    @field_validator("vocabularies", mode="before")
    @classmethod
    def _strings(cls, value: Any) -> Any:
        """Ids and names as strings; a plain list names its values by themselves."""
        if not isinstance(value, Mapping):
            return value
        names: dict[str, Any] = {}
        for name, entries in value.items():
            pairs = entries.items() if isinstance(entries, Mapping) else ((entry, entry) for entry in entries)
            names[str(name)] = {str(raw): str(text) for raw, text in pairs}
        return names

    @model_validator(mode="after")
    def _check(self) -> Self:
        seen: set[str] = set()
        for column in self.columns:
            if column in seen:
                raise ValueError(f"column {column!r} is named twice")
            seen.add(column)
        for feature, vocabulary in self._vocabularies_used():
            if vocabulary != INTENTS and vocabulary not in self.vocabularies:
                known = ", ".join(sorted(self.vocabularies)) or "none"
                raise ValueError(f"{feature}: no vocabulary {vocabulary!r}; there are: {known}, {INTENTS}")
        for item in self.features:
            check_placeholders(item)
        return self

    def _vocabularies_used(self) -> Iterator[tuple[str, str]]:
        for feature in self.features:
            if feature.kind in ("categorical", "sequence"):
                yield feature.name, feature.vocabulary
            elif feature.kind == "group":
                for member in feature.members:
                    if member.kind == "categorical":
                        yield f"{feature.name}.{member.name}", member.vocabulary

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The parquet columns that the features are read from."""
        return tuple(column for feature in self.features for column in feature.columns())

    @cached_property
    def hash(self) -> str:
        """Hash of everything but the catalogue, which has its own."""
        values = self.model_dump(mode="json")
        values["vocabularies"] = {
            name: list(entries.items()) for name, entries in self.vocabularies.items() if name != INTENTS
        }
        return sha256_json(values)

    def bind(self, catalog: IntentCatalog) -> FeatureSchema:
        """This schema with the catalogue's titles as vocabulary ``intents``; its hash stays."""
        bound = self.model_copy(update={"vocabularies": {**self.vocabularies, INTENTS: catalog.names}})
        bound.__dict__.pop("_by_name", None)  # the copy carries this schema's cache along
        return bound

    def vocabulary(self, name: str) -> Vocabulary:
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Vocabulary]:
        return {name: Vocabulary(entries) for name, entries in self.vocabularies.items()}

    def slots(self, session: Mapping[str, Any], *, include_pii: bool = False) -> list[Slot]:
        """The session's verbalised features in schema order; missing ones are left out.

        Args:
            session: column name -> raw value, as a row of the dataset. The schema must be bound to a catalogue.
            include_pii: also features marked ``pii``.
        """
        shown = (feature for feature in self.features if feature.verbalize is not None)
        slots = (feature.slot(session, self) for feature in shown if include_pii or not feature.pii)
        return [slot for slot in slots if slot is not None]

    @classmethod
    def load(cls, path: Path) -> FeatureSchema:
        """Reads schema.yaml; a vocabulary given as a path is a JSON file relative to it.

        Raises:
            SchemaError: not there, not YAML, or a contradiction.
        """
        if not path.is_file():
            raise SchemaError(where=str(path), required="a feature schema", received="no such file")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise SchemaError(where=str(path), required="valid YAML", received=str(error)) from error
        if not isinstance(values, dict):
            raise SchemaError(where=str(path), required="a mapping", received=type(values).__name__)
        for name, entries in dict(values.get("vocabularies") or {}).items():
            if isinstance(entries, str):
                values["vocabularies"][name] = read_vocabulary(path.parent, entries)
        return parse_config(cls, values, where=str(path), error_type=SchemaError)

    def save(self, path: Path) -> None:
        """Writes schema.yaml, and each large vocabulary to ``vocabularies/NAME.json`` beside it."""
        values = self.model_dump(mode="json", exclude_none=True)
        values["vocabularies"] = {}
        for name, entries in self.vocabularies.items():
            if name == INTENTS:
                continue
            if len(entries) > INLINE_VOCABULARY:
                write_json(path.parent / "vocabularies" / f"{name}.json", entries)
                values["vocabularies"][name] = f"vocabularies/{name}.json"
            else:
                values["vocabularies"][name] = dict(entries)
        write_atomic(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120).encode())


def read_vocabulary(directory: Path, relative: str) -> dict[str, str]:
    path = (directory / relative).resolve()
    if not path.is_relative_to(directory.resolve()) or not path.is_file():
        raise SchemaError(where=str(directory), required="a vocabulary file inside it", received=relative)
    entries = read_json(path)
    if not isinstance(entries, dict):
        raise SchemaError(where=str(path), required="a JSON object of id to string", received=type(entries).__name__)
    return entries


PLACEHOLDER = re.compile(r"\{(\w+)\}")


def render(template: str, values: Mapping[str, str]) -> str:
    """Fills ``{name}``. Not str.format: a schema must not reach into objects."""
    return PLACEHOLDER.sub(lambda match: values[match[1]], template)


def check_placeholders(feature: Any) -> None:
    listed = feature.kind in ("sequence", "group")
    allowed = {"verbalize": {"items"} if listed else {"value"}}
    if listed:
        allowed["item"] = set(feature.columns()) if feature.kind == "group" else {"value"}
    for field, names in allowed.items():
        template = getattr(feature, field)
        unknown = set() if template is None else set(PLACEHOLDER.findall(template)) - names
        if unknown:
            message = f"unknown placeholder {sorted(unknown)}; there are {sorted(names)}"
            raise ValueError(f"{feature.name}.{field}: {message}")


def as_list(value: object, max_length: int) -> Sequence[Any]:
    """The newest ``max_length`` values; None is empty."""
    return [] if value is None else list(value[:max_length])  # type: ignore[index]


def categorical_text(raw: object, vocabulary: Vocabulary, oov: OovPolicy) -> str | None:
    """The name of a raw id; never the raw id itself."""
    if raw is None:
        return None
    name = vocabulary.string(raw)
    return name if name is not None else UNKNOWN if oov == "unknown" else None


def numerical_text(raw: object, unit: Unit | None) -> str | None:
    if raw is None or not math.isfinite(float(raw)):  # type: ignore[arg-type]
        return None
    number = float(raw)  # type: ignore[arg-type]
    if unit is not None:
        return duration(number * (24 if unit == "days" else 1))
    return str(int(number)) if number == int(number) else f"{number:.2f}".rstrip("0")


# Hours below which a unit is used, and hours in the unit.
DURATIONS = (
    (1, 1 / 60, "minute"),
    (48, 1, "hour"),
    (60 * 24, 24, "day"),
    (2 * 8766, 8766 / 12, "month"),
    (math.inf, 8766, "year"),
)


def duration(hours: float) -> str:
    """Hours in the unit a person would use: "20 minutes", "3 hours", "7 days", "4 months", "2 years"."""
    size, unit = next((size, unit) for limit, size, unit in DURATIONS if hours < limit)
    count = max(0 if unit == "minute" else 1, int(hours / size))
    return f"{count} {unit}" if count == 1 else f"{count} {unit}s"


def list_slot(feature: SequenceFeature | GroupFeature, items: Sequence[str], *, elided: bool = False) -> Slot | None:
    assert feature.verbalize is not None
    if not items:
        return None if feature.empty is None else Slot(feature.name, feature.dimension, feature.empty)
    shown = feature.shown or len(items)
    head, _, tail = feature.verbalize.partition("{items}")
    return Slot(feature.name, feature.dimension, head, tuple(items[:shown]), tail, elided or len(items) > shown)
