"""The features that complete a log of 89: true of the session, and of no use, or little, for guessing the intent.

They follow the profile, the order and the histories where they must agree with them, and are noise otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rgalign.data.simulator.draw import Bools, Floats, Rng, ages, chance, cumulative, lognormal, pick, pick_one, starts
from rgalign.data.simulator.history import Contacts
from rgalign.data.simulator.state import Codes, State
from rgalign.data.simulator.words import REGIONS, WORDS, code

# name -> (share of each value); drawn for every session.
USER_CATEGORIES = {
    "address_kind": (0.64, 0.22, 0.06, 0.08),
    "card_scheme": (0.42, 0.40, 0.18),
    "identity_checked": (0.35, 0.65),
    "wallet_linked": (0.38, 0.62),
    "push_enabled": (0.30, 0.70),
    "referrer": (0.70, 0.10, 0.12, 0.05, 0.03),
}
ORDER_CATEGORIES = {
    "price_band": (0.18, 0.37, 0.27, 0.14, 0.04),
    "warehouse": (0.62, 0.28, 0.10),
    "insurance": (0.70, 0.20, 0.10),
    "seller_band": (0.06, 0.18, 0.40, 0.36),
}
# name -> (median, sigma) of a lognormal, rounded to whole units where it counts things.
USER_AMOUNTS = {
    "wallet_balance": (6.0, 1.3), "coins_balance": (120.0, 1.4), "lifetime_spend": (420.0, 1.2),
    "spend_30d": (45.0, 1.0), "cart_value": (25.0, 1.1), "live_minutes_7d": (9.0, 1.3),
    "hours_since_order": (70.0, 1.2),
}  # fmt: skip
USER_COUNTS = {
    "saved_addresses": 1.6, "followed_shops": 5.0, "lifetime_orders": 24.0, "orders_30d": 2.4, "orders_90d": 6.5,
    "returns_90d": 0.35,
    "refunds_90d": 0.4, "cancellations_90d": 0.5, "reviews_90d": 1.4, "agent_chats_90d": 0.3, "views_24h": 9.0,
    "searches_24h": 3.0, "cart_items": 3.2, "favourites": 8.0, "sessions_7d": 7.0, "vouchers_held": 2.5,
}  # fmt: skip
ORDER_AMOUNTS = {"order_value": (18.0, 1.0), "shipping_fee": (1.8, 0.6), "seller_response_hours": (3.0, 1.0)}
TENURE_DAYS = (3, 40, 200, 900)
LANGUAGE = (  # by region: English, Chinese, Malay, Thai, Indonesian, Vietnamese, Tagalog, Portuguese
    (80, 16, 4, 0, 0, 0, 0, 0), (30, 18, 52, 0, 0, 0, 0, 0), (6, 1, 0, 93, 0, 0, 0, 0), (5, 1, 0, 0, 94, 0, 0, 0),
    (4, 1, 0, 0, 0, 95, 0, 0), (45, 0, 0, 0, 0, 0, 55, 0), (4, 96, 0, 0, 0, 0, 0, 0), (3, 0, 0, 0, 0, 0, 0, 97),
)  # fmt: skip
RATING = (0.10, 0.06, 0.12, 0.30, 0.42)  # of the last contact that was rated
REFUND_METHOD = (0.45, 0.30, 0.20, 0.05)
VIEWED, PAYMENTS = 12, 5
VIEWS_CURRENT = 0.35  # of the categories looked at, those of the current order
_LANGUAGE = cumulative(LANGUAGE)
assert len(LANGUAGE) == len(REGIONS)


@dataclass(frozen=True)
class Background:
    """codes: name -> [n], 0 is none; numbers: name -> [n], NaN is none; the rest are flat histories, newest first."""

    codes: dict[str, Codes]
    numbers: dict[str, Floats]
    viewed_offsets: NDArray[np.int32]
    viewed: Codes
    payment_offsets: NDArray[np.int32]
    payment_hours: Floats
    payment_used: Codes
    payment_outcome: Codes


def draw_background(rng: Rng, state: State, contacts: Contacts, region_methods: Floats) -> Background:
    """``region_methods``: [regions, methods] cumulative shares of payment methods."""
    n = len(state.region)
    has_order = state.codes["order_status"] > 0
    codes = {name: pick_one(rng, cumulative(shares), n) + 1 for name, shares in USER_CATEGORIES.items()}
    codes["language"] = pick(rng, _LANGUAGE, state.region) + 1
    for name, shares in ORDER_CATEGORIES.items():
        codes[name] = np.where(has_order, pick_one(rng, cumulative(shares), n) + 1, 0).astype(np.int16)
    refunded = state.codes["refund_status"] > 0
    codes["refund_method"] = np.where(refunded, pick_one(rng, cumulative(REFUND_METHOD), n) + 1, 0).astype(np.int16)
    viewed_offsets, viewed = _viewed(rng, state)
    payments = np.minimum(rng.poisson(1.2, n), PAYMENTS).astype(np.int32)
    owner = np.repeat(state.region, payments)
    return Background(
        codes,
        _numbers(rng, state, contacts, has_order, refunded),
        viewed_offsets,
        viewed,
        starts(payments),
        ages(rng, payments, first=50.0, gap=180.0),
        pick(rng, region_methods, owner) + 1,
        pick_one(rng, cumulative((0.85, 0.10, 0.05)), len(owner)) + 1,
    )


def _numbers(rng: Rng, state: State, contacts: Contacts, has_order: Bools, refunded: Bools) -> dict[str, Floats]:
    n = len(has_order)
    spending = np.asarray((0, 0.6, 1.0, 1.8, 3.2), np.float32)[state.codes["tier"]]
    out: dict[str, NDArray[Any]] = {
        name: np.round(lognormal(rng, median, sigma, n) * spending, 2) for name, (median, sigma) in USER_AMOUNTS.items()
    }
    # A Poisson count with a lognormal rate is close to a rounded lognormal, which costs a tenth.
    out |= {name: np.floor(lognormal(rng, mean * 0.7, 0.85, n) * spending + 0.3) for name, mean in USER_COUNTS.items()}
    out["account_age_days"] = np.ceil(lognormal(rng, np.asarray((0, *TENURE_DAYS))[state.codes["tenure"]], 0.4, n))
    out["last_rating"] = _where(chance(rng, 0.3, n), pick_one(rng, cumulative(RATING), n) + 1)
    out["seconds_in_app"] = np.round(lognormal(rng, 35.0, 1.2, n), 1)
    out |= _contact_numbers(contacts)
    for name, (median, sigma) in ORDER_AMOUNTS.items():
        out[name] = _where(has_order, np.round(lognormal(rng, median, sigma, n), 2))
    out["item_count"] = _where(has_order, 1 + np.floor(lognormal(rng, 0.6, 0.9, n)))
    out["discount_share"] = _where(has_order, np.round(0.5 * rng.random(n, dtype=np.float32) ** 2, 3))
    attempts = 1 + (state.codes["payment_status"] == code("payment_status", "Failed"))
    out["payment_attempts"] = _where(has_order, attempts)
    refunded_share = 0.6 + 0.4 * rng.random(n, dtype=np.float32)
    out["refund_amount"] = _where(refunded, np.round(out["order_value"] * refunded_share, 2))
    scanned = state.codes["last_scan"] > 0
    out["hours_since_scan"] = _where(scanned, state.hours_in_status * rng.random(n, dtype=np.float32))
    out["scan_count"] = _where(scanned, state.codes["last_scan"] + np.floor(lognormal(rng, 0.7, 0.6, n)))
    failed = state.codes["last_scan"] == code("last_scan", "Delivery attempt failed")
    out["delivery_attempts"] = _where(scanned, np.where(failed, 1 + chance(rng, 0.3, n), 0))
    out["eta_overrun_hours"] = state.overrun_hours
    out["hours_in_status"] = np.round(state.hours_in_status, 2)
    return {name: np.asarray(values, np.float32) for name, values in out.items()}


def _contact_numbers(contacts: Contacts) -> dict[str, Floats]:
    n = len(contacts.offsets) - 1
    owner = np.repeat(np.arange(n), np.diff(contacts.offsets))
    newest = np.full(n, np.nan, np.float32)
    has = np.diff(contacts.offsets) > 0
    newest[has] = contacts.hours[contacts.offsets[:-1][has]]
    counts = {f"chats_{days}d": np.bincount(owner[contacts.hours <= days * 24], minlength=n) for days in (7, 30)}
    return {"hours_since_chat": newest, **{name: values.astype(np.float32) for name, values in counts.items()}}


def _viewed(rng: Rng, state: State) -> tuple[NDArray[np.int32], Codes]:
    lengths = np.minimum(rng.poisson(3.0, len(state.region)), VIEWED).astype(np.int32)
    current = np.repeat(state.codes["category"], lengths)
    any_category = rng.integers(1, len(WORDS["category"]) + 1, len(current), dtype=np.int16)
    return starts(lengths), np.where((current > 0) & chance(rng, VIEWS_CURRENT, len(current)), current, any_category)


def _where(condition: Bools, values: NDArray[Any]) -> Floats:
    return np.where(condition, values, np.float32(np.nan)).astype(np.float32)
