"""City service lines (311): contacts with their place's history -> features, vocabularies, dataset directory.

The arranged CSVs and the raw city file both become one table of contacts, which this module describes and writes:

    sample_id, ts, week, intent_id, internal, account, channel, user_id, <where columns>, hour, dow,
    hist_n, {hist,street,cell}_{intents,hours}, hist_status, hist_channel, area_top_7d   (lists, newest first)

The slots' order is chosen for prefix reuse: what many prompts share comes first (place, channel, neighborhood, its
week), what no two share comes last (histories). There is no month: a time split tests on months never trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rgalign.data.dataset import STRINGS, Dataset, DatasetWriter
from rgalign.errors import DataError
from rgalign.intents import IntentCatalog
from rgalign.schema import (
    CategoricalFeature,
    CategoricalMember,
    Dimension,
    Feature,
    FeatureSchema,
    GroupFeature,
    NumericalFeature,
    NumericalMember,
    SequenceFeature,
)

View = Literal["residents", "accounts", "all"]
Mask = NDArray[np.bool_]
MIN_COUNT = 10  # training rows a value needs for a code of its own

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
HOURS = {str(hour): f"{hour:02}:00" for hour in range(24)}
# Readable names; a value that is not here is its own name.
NAMES: dict[str, dict[str, str]] = {
    "channel": {"Constituent Call": "Phone Call", "Self Service": "Website", "Citizens Connect App": "Mobile App"},
    "place_kind": {"address": "Address", "intersection": "Intersection", "none": "None Given"},
    "neighborhood": {
        "Downtown / Financial District": "Downtown",
        "Fenway / Kenmore / Audubon Circle / Long": "Fenway / Kenmore",
        "South Boston / South Boston Waterfront": "South Boston Waterfront",
    },
}


@dataclass(frozen=True)
class ServiceLine:
    """One city's columns.

    Args:
        shown: categorical column -> its prompt label, in prompt order.
        silent: categorical columns that only the tower reads.
        region: the column that is the dataset's region.
        shown_steps: most steps the prompt shows of: the place's history, the area's frequent intents.
        nearby: other histories -> the prompt's words for where, None where only the tower reads it.
    """

    name: str
    description: str
    shown: Mapping[str, str]
    silent: Sequence[str]
    region: str
    shown_steps: tuple[int, int]
    nearby: Mapping[str, str | None]

    @property
    def where(self) -> list[str]:
        """The categorical columns besides the time's."""
        return [*self.shown, *self.silent]


BOSTON = ServiceLine(
    name="boston311",
    description="Contacts with the City of Boston's 24-hour service line; the user is the place.",
    shown={"place_kind": "Place", "channel": "Channel", "neighborhood": "Neighborhood"},
    silent=(
        *("zipcode", "ward", "precinct", "police_district", "council_district"),
        *("fire_district", "pw_district", "street"),
    ),
    region="neighborhood",
    shown_steps=(4, 3),
    nearby={"street": "On This Street"},
)
SP156 = ServiceLine(
    name="sp156",
    description="Contacts with São Paulo's service line SP156; the user is the place. Titles are English renderings.",
    shown={"channel": "Channel", "subprefecture": "Area"},
    silent=("district", "street", "cell"),
    region="subprefecture",
    shown_steps=(3, 2),
    nearby={"cell": "Nearby", "street": None},
)


def view_rows(contacts: pa.Table, view: View) -> Mask:
    """Which contacts are sessions of a view. Contacts raised by city staff are history, never sessions."""
    if view not in ("residents", "accounts", "all"):
        raise DataError(where="view", required="residents, accounts or all", received=repr(view))
    rows: Mask = ~_bools(contacts, "internal")
    return rows & _bools(contacts, "account") if view == "accounts" and "account" in contacts.column_names else rows


def write_dataset(
    line: ServiceLine, contacts: pa.Table, catalog: IntentCatalog, splits: Mapping[str, Mask], out: Path, early: Mask
) -> Dataset:
    """Writes the contacts under each split's mask; vocabularies come from training rows only.

    Args:
        early: rows, none later than the training split, that name the values which the prompt shows.

    Raises:
        DataError: no row to train on, or ``out`` is taken.
    """
    if not splits["train"].any():
        raise DataError(where=f"{line.name}, training split", required="at least one session", received="none")
    schema = service_line_schema(line, contacts, splits["train"], early)
    with DatasetWriter(out, schema, catalog) as writer:
        for split, mask in splits.items():
            writer.write(split, _sessions(line, contacts.filter(pa.array(mask))))
    return Dataset.open(out)


def service_line_schema(line: ServiceLine, contacts: pa.Table, train: Mask, early: Mask) -> FeatureSchema:
    """Features in prompt order, with vocabularies of the values that occur MIN_COUNT times.

    Values that the prompt shows are counted over ``early``, others over ``train``. An importer that gives the same
    early rows to all its views and splits gives a session the same prompt, so the same latent query, in all of them.
    """
    vocabularies = {name: _vocabulary(contacts, name, early) for name in line.shown}
    vocabularies |= {name: _vocabulary(contacts, name, train) for name in line.silent}
    vocabularies |= {"dow": {str(number): day for number, day in enumerate(DAYS)}, "hour": HOURS}
    sessions = contacts.filter(pa.array(early))
    for name in ("hist_status", "hist_channel"):
        values = sorted(set(pc.unique(pc.list_flatten(sessions.column(name))).to_pylist()) - {None})
        vocabularies[name] = {value: value.removeprefix("closed:") for value in values}
    return FeatureSchema(
        name=line.name, description=line.description, features=_features(line), vocabularies=vocabularies
    )


def _features(line: ServiceLine) -> tuple[Feature, ...]:
    place, area = line.shown_steps
    features: list[Feature] = [_categorical(name, f"{label}: {{value}}") for name, label in line.shown.items()]
    features += [
        SequenceFeature(
            name="area_top_7d",
            dimension="context",
            vocabulary="intents",
            max_length=5,
            shown=area,
            verbalize="Frequent Requests In The Area This Week: ({items})",
        ),
        _categorical("dow", "Time: {value}"),
        _categorical("hour", "{value}"),
        _history(place),
        *(_nearby(kind, where) for kind, where in line.nearby.items()),
        *(_categorical(name, None) for name in line.silent),
        NumericalFeature(name="hist_n", dimension="behaviour", transform="log1p", minimum=0),
    ]
    return tuple(features)


def _categorical(name: str, verbalize: str | None) -> CategoricalFeature:
    dimension: Dimension = "context" if name in ("channel", "place_kind", "dow", "hour") else "profile"
    return CategoricalFeature(name=name, dimension=dimension, vocabulary=name, verbalize=verbalize)


def _history(shown: int) -> GroupFeature:
    return GroupFeature(
        name="history",
        dimension="behaviour",
        members=(
            CategoricalMember(name="hist_intents", vocabulary="intents"),
            NumericalMember(name="hist_hours", unit="hours"),
            CategoricalMember(name="hist_status", vocabulary="hist_status"),
            CategoricalMember(name="hist_channel", vocabulary="hist_channel"),
        ),
        age="hist_hours",
        window_hours=None,
        max_length=10,
        shown=shown,
        item="'{hist_intents}' {hist_hours} ago {hist_status}",
        verbalize="Earlier Requests At This Place: ({items})",
    )


def _nearby(kind: str, where: str | None) -> GroupFeature:
    intents, hours = f"{kind}_intents", f"{kind}_hours"
    return GroupFeature(
        name=f"{kind}_history",
        dimension="behaviour",
        members=(CategoricalMember(name=intents, vocabulary="intents"), NumericalMember(name=hours, unit="hours")),
        age=hours,
        window_hours=None,
        max_length=5,
        shown=None if where is None else 2,
        item=None if where is None else f"'{{{intents}}}' {{{hours}}} ago",
        verbalize=None if where is None else f"Recent Requests {where}: ({{items}})",
    )


def _vocabulary(contacts: pa.Table, name: str, rows: Mask) -> dict[str, str]:
    counts = pc.value_counts(contacts.column(name).filter(pa.array(rows)))
    common = counts.filter(pc.greater_equal(counts.field("counts"), MIN_COUNT)).field("values")
    values = sorted(value for value in common.to_pylist() if value is not None)
    return {value: NAMES.get(name, {}).get(value, value) for value in values}


def _sessions(line: ServiceLine, rows: pa.Table) -> pa.Table:
    """The dataset's columns of some contacts; ``week`` and ``account`` stay as slices."""
    histories = [f"{kind}_{what}" for kind in ("hist", *line.nearby) for what in ("intents", "hours")]
    names = [*line.where, "dow", "hour", *histories, "hist_status", "hist_channel", "area_top_7d", "hist_n", "week"]
    columns = {
        "session_id": rows.column("sample_id"),
        "user_id": pc.fill_null(rows.column("user_id"), ""),
        "ts": rows.column("ts"),
        "region": pc.fill_null(rows.column(line.region), "Unknown"),
        **{name: rows.column(name) for name in names},
        "candidates": pa.array([[]] * len(rows), STRINGS),
        "clicked": one_item_lists(rows.column("intent_id")),
    }
    if "account" in rows.column_names:
        columns["account"] = pc.if_else(rows.column("account"), "yes", "no")
    return pa.table(columns)


def one_item_lists(values: pa.ChunkedArray) -> pa.Array:
    return pa.ListArray.from_arrays(np.arange(len(values) + 1, dtype=np.int32), values.combine_chunks())


def latest(mask: Mask, count: int | None) -> Mask:
    """The last ``count`` rows of a mask over rows in time order; None keeps all."""
    if count is None:
        return mask
    if count < 1:
        raise DataError(where="number of sessions", required="at least 1", received=str(count))
    kept = np.zeros_like(mask)
    kept[np.flatnonzero(mask)[-count:]] = True
    return kept


def _bools(contacts: pa.Table, name: str) -> Mask:
    return np.asarray(contacts.column(name).to_numpy(zero_copy_only=False), np.bool_)
