"""`rgalign data infer-schema`: a file of sessions -> a proposed schema.yaml, with the reasons as comments.

What is guessed: kinds, vocabularies, sequences (lists, or strings such as a|b|c), coupled groups (list columns of equal
lengths row by row), ages, dimensions, and columns that look personal (``pii: true``; their values are not copied).
A person edits the result: the guesses come from names and at most MAX_ROWS rows, and nothing here can tell a column
that is only known after the session.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
import yaml

from rgalign.data.dataset import COLUMNS
from rgalign.data.personal import personal_reason
from rgalign.data.ragged import flat, lists, numbers
from rgalign.data.session_file import MAX_ROWS, ListColumn, as_lists, coupled, read_sessions
from rgalign.errors import DataError
from rgalign.files import write_atomic
from rgalign.schema import (
    INTENTS,
    CategoricalFeature,
    CategoricalMember,
    Dimension,
    Feature,
    FeatureSchema,
    GroupFeature,
    Member,
    NumericalFeature,
    NumericalMember,
    SequenceFeature,
    Unit,
)

HEADER = (
    f"# Proposed by `rgalign data infer-schema` from at most {MAX_ROWS} rows: read it, edit it.",
    "# Take out what is only known after the session began (labels, outcomes): no value can show that.",
    "# The order of the features is their order in the prompt; verbalize: null keeps one out of it.",
)
MAX_VALUES = 10_000  # of one vocabulary, the most frequent ones
MIN_COUNT = 2  # a value seen once is more likely noise than vocabulary
AGE_WORDS = {"age", "ages", "ago", "hour", "hours", "day", "days", "since"}
PROFILE_WORDS = {"user", "customer", "member", "gender", "age", "country", "language", "city", "tier", "segment"}
ID_WORDS = {"id", "ids", "code", "type", "status", "category", "class", "ward", "district"}


@dataclass(frozen=True)
class Proposal:
    """A schema, why each feature is what it is, and why other columns are none: name -> sentence."""

    schema: FeatureSchema
    reasons: dict[str, str]
    left_out: dict[str, str]

    def write(self, path: Path) -> None:
        """Writes schema.yaml with the reasons as comments above each feature."""
        self.schema.save(path)
        written = path.read_text(encoding="utf-8").splitlines()
        lines = list(HEADER)
        lines += [f"# left out: {name}: {reason}" for name, reason in self.left_out.items()]
        for line, following in zip(written, [*written[1:], ""], strict=True):
            if line.startswith("- kind: "):
                lines.append(f"# {self.reasons[yaml.safe_load(following)['name']]}")
            lines.append(line)
        write_atomic(path, ("\n".join(lines) + "\n").encode())


def infer_schema(file: Path | str, *, name: str | None = None) -> Proposal:
    """Proposes a schema for a parquet or CSV file (gzipped CSV too) with one session a row.

    Raises:
        DataError: no such file, no rows, or no column that could be a feature.
    """
    file = Path(file)
    table = read_sessions(file)
    columns = {name: flat(table.column(name)) for name in table.column_names}
    intents = _catalogue_ids(columns)
    builder = _Builder(intents)
    found_lists: dict[str, ListColumn] = {}
    for column, values in columns.items():
        if column in COLUMNS:
            continue
        as_list = as_lists(values)
        if as_list is not None:
            found_lists[column] = as_list
        else:
            builder.plain(column, values)
    for names in coupled(found_lists):
        builder.listed({column: found_lists[column] for column in names})
    for column in COLUMNS:
        if column not in columns:
            required = column in ("session_id", "ts", "clicked")
            builder.left_out[column] = f"missing in the file{'; a dataset needs this column' if required else ''}"
    if not builder.features:
        raise DataError(where=str(file), required="at least one column that can be a feature", received="none")
    schema = FeatureSchema(
        name=name or file.name.partition(".")[0],
        features=tuple(builder.features),
        vocabularies=builder.vocabularies,
    )
    return Proposal(schema, builder.reasons, builder.left_out)


def write_proposal(file: Path | str, out: Path) -> str:
    """Writes the proposed schema.yaml of a file; returns what a person should know, as lines.

    Raises:
        DataError: as ``infer_schema``, or ``out`` exists: it may hold somebody's edits.
    """
    if out.exists():
        raise DataError(where=str(out), required="a file that does not exist", received="one that does")
    proposal = infer_schema(file)
    proposal.write(out)
    features = proposal.schema.features
    personal = [feature.name for feature in features if feature.pii]
    lines = [f"{out}: {len(features)} features, {len(personal)} of them look personal. Read it and edit it."]
    lines += [f"  {feature.kind:<11} {feature.name}: {proposal.reasons[feature.name]}" for feature in features]
    lines += [f"  left out    {name}: {reason}" for name, reason in proposal.left_out.items()]
    return "\n".join(lines)


class _Builder:
    """Collects features, vocabularies and reasons."""

    def __init__(self, intents: set[str]) -> None:
        self.features: list[Feature] = []
        self.vocabularies: dict[str, dict[str, str]] = {}
        self.reasons: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self._intents = intents

    def plain(self, name: str, values: pa.Array) -> None:
        """A column of single values: categorical, numerical, or none."""
        present = values.drop_null()
        distinct = len(present.unique()) if not pt.is_null(values.type) else 0
        personal = personal_reason(name, present)
        if distinct == 0:
            self.left_out[name] = "always null"
        elif personal is not None:
            # The vocabulary stays empty: what is personal must not be copied into a schema.
            self._categorical(name, {}, f"personal? {personal}; pii, and its values are not listed here", pii=True)
        elif distinct == 1:
            self.left_out[name] = "always the same value"
        elif pt.is_temporal(values.type):
            self.left_out[name] = "a time: turn it into hours before ts, an hour or a weekday"
        elif _is_quantity(name, present, distinct):
            self._numerical(name, present)
        elif distinct > 50 and distinct > 0.8 * len(present):
            self.left_out[name] = f"{distinct} different values in {len(present)} rows: an id or free text"
        else:
            known = self._names(present)
            stored = "; booleans, to be stored as strings" if pt.is_boolean(values.type) else ""
            reason = f"{distinct} different values, {len(known)} of them at least twice{stored}"
            self._categorical(name, known, reason)

    def listed(self, columns: dict[str, ListColumn]) -> None:
        """One list column, or several that are as long row by row."""
        kept = {name: column for name, column in columns.items() if self._usable(name, column)}
        if len(kept) == 1:
            name, column = next(iter(kept.items()))
            if not _is_quantity(name, column.values, len(column.values.unique())):
                self._sequence(name, column)
                return
        if kept:
            self._group(kept)

    def _usable(self, name: str, column: ListColumn) -> bool:
        personal = personal_reason(name, column.values)
        if len(column.values) == 0:
            self.left_out[name] = "always empty"
        elif personal is not None:
            self.left_out[name] = f"personal? {personal}"
        return name not in self.left_out

    def _categorical(self, name: str, known: dict[str, str], reason: str, *, pii: bool = False) -> None:
        vocabulary = self._vocabulary(name, known)
        verbalize = None if pii else f"{_label(name)}: {{value}}"
        self.features.append(
            CategoricalFeature(
                name=name, dimension=_dimension(name), vocabulary=vocabulary, pii=pii, verbalize=verbalize
            )
        )
        self.reasons[name] = reason

    def _numerical(self, name: str, values: pa.Array) -> None:
        array = numbers(values)
        low, middle, high = np.nanmin(array), np.nanmedian(array), np.nanmax(array)
        skewed = low >= 0 and high > 20 * max(middle, 1)
        feature = NumericalFeature(
            name=name,
            dimension=_dimension(name),
            transform="log1p" if skewed else "identity",
            minimum=None,
            maximum=None,
            verbalize=f"{_label(name)}: {{value}}",
        )
        self.features.append(feature)
        self.reasons[name] = f"numbers from {low:g} to {high:g}, median {middle:g}"

    def _sequence(self, name: str, column: ListColumn) -> None:
        feature = SequenceFeature(
            name=name,
            dimension="behaviour",
            vocabulary=self._vocabulary(name, self._names(column.values)),
            max_length=column.max_length,
            shown=min(5, column.max_length),
            verbalize=f"{_label(name)}: ({{items}})",
        )
        self.features.append(feature)
        self.reasons[name] = f"{column.reason}; up to {int(column.lengths.max())} values. Newest must come first"

    def _group(self, columns: dict[str, ListColumn]) -> None:
        members: list[Member] = []
        age: str | None = None
        for name, column in columns.items():
            if _is_quantity(name, column.values, len(column.values.unique())):
                unit = _age_unit(name, column)
                # Only an age in hours can be the group's age; others are numbers with a unit.
                age = name if unit == "hours" and age is None else age
                members.append(NumericalMember(name=name, unit=unit))
            else:
                vocabulary = self._vocabulary(name, self._names(column.values))
                members.append(CategoricalMember(name=name, vocabulary=vocabulary))
        names = list(columns)
        group = _common_prefix(names) or f"{names[0]}_group"
        shown = [
            f"'{{{m.name}}}'" if m.kind == "categorical" else f"{{{m.name}}}{' ago' if m.unit else ''}" for m in members
        ]
        longest = max(column.max_length for column in columns.values())
        feature = GroupFeature(
            name=group if group not in columns else f"{group}_group",
            dimension="behaviour",
            members=tuple(members),
            age=age,
            window_hours=None,
            max_length=longest,
            shown=min(5, longest),
            item=" ".join(shown),
            verbalize=f"{_label(group)}: ({{items}})",
        )
        self.features.append(feature)
        as_long = "equal lengths row by row" if len(names) > 1 else "a list of numbers"
        self.reasons[feature.name] = (
            f"{', '.join(names)}: {as_long}; {columns[names[0]].reason}. Newest must come first"
        )

    def _vocabulary(self, name: str, known: dict[str, str]) -> str:
        """``intents`` where the values are the catalogue's, else a vocabulary named like the column."""
        if known and self._intents and sum(raw in self._intents for raw in known) >= 0.8 * len(known):
            return INTENTS
        self.vocabularies[name] = known
        return name

    def _names(self, values: pa.Array) -> dict[str, str]:
        """Frequent values, each named by itself."""
        counts = pc.value_counts(values.drop_null().cast(pa.string()))
        counts = counts.filter(pc.greater_equal(counts.field("counts"), MIN_COUNT))
        order = sorted(
            zip(counts.field("counts").to_pylist(), counts.field("values").to_pylist(), strict=True), key=_rank
        )
        return {raw: raw for _, raw in order[:MAX_VALUES]}


def _rank(pair: tuple[int, str]) -> tuple[int, str]:
    return -pair[0], pair[1]


def _catalogue_ids(columns: dict[str, pa.Array]) -> set[str]:
    """Ids that the label column shows to be intents."""
    clicked = columns.get("clicked")
    if clicked is None:
        return set()
    if pt.is_list(clicked.type) or pt.is_large_list(clicked.type):
        clicked = lists(clicked).values
    return set(clicked.drop_null().unique().cast(pa.string()).to_pylist())


def _is_quantity(name: str, values: pa.Array, distinct: int) -> bool:
    if pt.is_floating(values.type) or pt.is_decimal(values.type):
        return True
    if not pt.is_integer(values.type) or _words(name) & ID_WORDS:
        return False
    return distinct > 20 or bool(_words(name) & (AGE_WORDS | {"count", "num", "n", "amount", "price", "total"}))


def _age_unit(name: str, column: ListColumn) -> Unit | None:
    values = numbers(column.values)
    if not _words(name) & AGE_WORDS or np.nanmin(values, initial=0) < 0:
        return None
    return "days" if _words(name) & {"day", "days"} else "hours"


def _dimension(name: str) -> Dimension:
    return "profile" if _words(name) & PROFILE_WORDS else "context"


def _words(name: str) -> set[str]:
    return set(name.lower().replace("-", "_").split("_"))


def _label(name: str) -> str:
    return " ".join(word.capitalize() for word in name.replace("-", "_").split("_") if word)


def _common_prefix(names: list[str]) -> str:
    """Words that all names begin with: hist_intents, hist_hours -> hist."""
    prefix = []
    for words in zip(*(name.split("_") for name in names), strict=False):
        if len(set(words)) > 1:
            break
        prefix.append(words[0])
    return "_".join(prefix)
