"""Sessions to parquet columns: codes and numbers to Arrow arrays, flat histories to list columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rgalign.data.simulator.clicks import Clicks
from rgalign.data.simulator.draw import Floats, Ints, starts
from rgalign.data.simulator.features import build_schema
from rgalign.data.simulator.when import CAMPAIGN_DAYS, START
from rgalign.data.simulator.words import REGIONS
from rgalign.data.simulator.world import Session

ID_BITS = 40
FEATURE_COLUMNS = tuple(build_schema().columns)


def ids(first: int, count: int, seed: int) -> tuple[pa.Array, pa.Array]:
    """(session ids in order of time, user ids). A user has one session: user numbers are the sessions', permuted."""
    number = np.arange(first, first + count, dtype=np.uint64)
    mask = np.uint64((1 << ID_BITS) - 1)
    mixed = (number + np.uint64(seed)) & mask
    for factor in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F):  # odd multipliers and shifts: each step is a bijection
        mixed = (mixed * np.uint64(factor)) & mask
        mixed ^= mixed >> np.uint64(17)
    session = pc.binary_join_element_wise("s", pc.utf8_lpad(pa.array(number).cast(pa.string()), 9, "0"), "")
    user = pc.binary_join_element_wise("u", pa.array(mixed).cast(pa.string()), "")
    return session, user


def session_columns(session: Session, hours: NDArray[np.float64], intents: pa.Array) -> dict[str, pa.Array]:
    """Every feature column and ``ts``. ``intents``: the catalogue's ids in row order."""
    state, traces, background = session.state, session.traces, session.background
    codes = state.codes | background.codes | _clock_codes(hours)
    codes |= {"entry_point": traces.entry_point, "app_event": traces.app_event, "order_focus": traces.order_focus}
    numbers = background.numbers | _clock_numbers(hours)
    orders, contacts = state.orders, session.contacts
    columns = {name: _categorical(values) for name, values in codes.items()}
    columns |= {name: _numerical(values) for name, values in numbers.items()}
    columns |= {
        "ts": pa.array(START + np.round(hours * 3.6e9).astype("timedelta64[us]")),
        "region": pc.take(pa.array(REGIONS), pa.array(state.region)),
        "articles_read": _list(traces.article_offsets, _small(traces.article)),
        "pages_visited": _list(traces.page_offsets, _small(traces.page)),
        "viewed_categories": _list(background.viewed_offsets, _small(background.viewed)),
        "other_status": _list(orders.offsets, _small(orders.status)),
        "other_category": _list(orders.offsets, _small(orders.category)),
        "other_carrier": _list(orders.offsets, _small(orders.carrier)),
        "other_payment": _list(orders.offsets, _small(orders.payment_method)),
        "other_hours": _list(orders.offsets, _hours(orders.hours)),
        "contact_intent": _list(contacts.offsets, pc.take(intents, pa.array(contacts.intent))),
        "contact_hours": _list(contacts.offsets, _hours(contacts.hours)),
        "contact_outcome": _list(contacts.offsets, _small(contacts.outcome)),
        "payment_used": _list(background.payment_offsets, _small(background.payment_used)),
        "payment_outcome": _list(background.payment_offsets, _small(background.payment_outcome)),
        "payment_hours": _list(background.payment_offsets, _hours(background.payment_hours)),
    }
    return {name: columns[name] for name in dict.fromkeys(("ts", "region", *FEATURE_COLUMNS))}


def intent_lists(rows: NDArray[np.int32], intents: pa.Array) -> pa.Array:
    """[n, width] catalogue rows, -1 is padding, to lists of ids."""
    kept = rows >= 0
    return _list(starts(kept.sum(axis=1)), pc.take(intents, pa.array(rows[kept])))


def truth_columns(session: Session, clicks: Clicks, intents: pa.Array, problems: pa.Array) -> dict[str, pa.Array]:
    truth = session.truth
    kept = truth.probabilities > 0
    offsets = starts(kept.sum(axis=1))
    return {
        "noise": pa.array(clicks.noise),
        "true_intents": _list(offsets, pc.take(intents, pa.array(truth.rows[kept]))),
        "true_probs": _list(offsets, pa.array(truth.probabilities[kept])),
        "rest_mass": pa.array(truth.rest),
        "annotated": intent_lists(session.relevant, intents),
        "click": intent_lists(clicks.clicked, intents),
        "problem": pc.take(problems, pa.array(session.problem)),
    }


def _clock_codes(hours: NDArray[np.float64]) -> dict[str, Ints]:
    weekday = (hours // 24 % 7).astype(np.int16) + 1
    day_part = (hours % 24 // 6).astype(np.int16) + 1
    return {"weekday": weekday, "day_part": day_part, "weekend": (weekday >= 6).astype(np.int16) + 1}


def _clock_numbers(hours: NDArray[np.float64]) -> dict[str, Floats]:
    day = (hours // 24).astype(np.int64)
    starts_at = np.asarray([*CAMPAIGN_DAYS, 45])  # the next one lies in the weeks after
    to_campaign = starts_at[np.searchsorted(starts_at, day)] - day
    return {"hour": np.floor(hours % 24).astype(np.float32), "days_to_campaign": to_campaign.astype(np.float32)}


def _small(codes: Ints) -> pa.Array:
    return pa.array(codes.astype(np.int8))


def _categorical(codes: Ints) -> pa.Array:
    return pa.array(codes.astype(np.int8), mask=codes == 0)


def _numerical(values: NDArray[np.floating[Any]]) -> pa.Array:
    return pa.array(values.astype(np.float32), mask=np.isnan(values))


def _hours(values: Floats) -> pa.Array:
    return pa.array(np.round(values, 2))


def _list(offsets: Ints, values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)
