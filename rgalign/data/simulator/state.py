"""The user's situation before anything went wrong: who, when, which order, how far it has come.

Codes are places in a vocabulary, from 1; 0 is none. Everything here is seen by the chatbot.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rgalign.data.simulator import population as pop
from rgalign.data.simulator.draw import Floats, Rng, ages, chance, cumulative, lognormal, pick, pick_one, starts
from rgalign.data.simulator.words import WORDS, code

Codes = NDArray[np.int16]
WAITING_EDGES = (6, 24, 72, 120, 192, 360)  # hours
LATE_EDGES = (-48, 0, 48, 168)  # hours past the promise
OTHER_ORDERS = 5
PROFILE = ("gender", "age_band", "tier", "tenure", "city_tier", "device", "network", "app_release")
REGIONAL = ("carrier", "category", "shop_type", "payment_method", "delivery_type")


@dataclass(frozen=True)
class Orders:
    """The user's orders beside the current one, newest first, flat over sessions.

    Args:
        offsets: [n + 1].
        status, category, carrier, payment_method: [m] codes.
        hours: [m] since the order last changed its status.
    """

    offsets: NDArray[np.int32]
    status: Codes
    category: Codes
    carrier: Codes
    payment_method: Codes
    hours: Floats

    def newest(self, values: Codes) -> Codes:
        """[n] the newest order's value, 0 where there is none."""
        has = np.diff(self.offsets) > 0
        out = np.zeros(len(has), np.int16)
        out[has] = values[self.offsets[:-1][has]]
        return out


@dataclass(frozen=True)
class State:
    """n sessions. ``codes``: vocabulary -> [n]; ``hours_in_status``, ``overrun_hours``: NaN where there is none."""

    region: Codes  # from 0
    codes: dict[str, Codes]
    hours_in_status: Floats
    overrun_hours: Floats
    orders: Orders


class Population:
    """The cumulative tables that states are drawn from."""

    def __init__(self, seed: int) -> None:
        self.region = cumulative(pop.REGION_SHARE)
        self.profile = {name: cumulative(pop.SHARE[name]) for name in PROFILE}
        self.regional = {name: cumulative(pop.regional(name, seed)) for name in REGIONAL}
        self.last_scan = cumulative(pop.by_status(pop.LAST_SCAN, "last_scan", pop.NONE))
        self.payment_status = cumulative(pop.by_status(pop.PAYMENT_STATUS, "payment_status", "Paid"))
        self.refund_status = cumulative(pop.by_status(pop.REFUND_STATUS, "refund_status", pop.NONE))
        shares = [pop.VOUCHER_STATE.get(name, 0.0) for name in (pop.NONE, *WORDS["voucher_state"])]
        self.voucher_state = cumulative(shares)

    @cached_property
    def order_status(self) -> Floats:
        return cumulative(pop.SHARE["order_status"])

    @cached_property
    def return_reason(self) -> Floats:
        return cumulative(pop.SHARE["return_reason"])


def draw_state(rng: Rng, population: Population, campaign: Codes) -> State:
    """Draws n states; ``campaign`` [n] follows from the sessions' times."""
    n = len(campaign)
    region = pick_one(rng, population.region, n)
    codes = {name: pick_one(rng, table, n) + 1 for name, table in population.profile.items()}
    codes |= {name: pick(rng, table, region) + 1 for name, table in population.regional.items()}
    codes["campaign"] = campaign
    status = np.where(chance(rng, 0.86, n), pick_one(rng, population.order_status, n) + 1, 0).astype(np.int16)
    codes["order_status"] = status
    hours = lognormal(rng, np.asarray((1, *pop.STATUS_HOURS))[status], 0.9, n)
    overrun = _overrun(rng, status, codes["delivery_type"], hours)
    codes["waiting"] = np.searchsorted(WAITING_EDGES, hours, side="right").astype(np.int16) + 1
    codes["promise"] = np.where(
        np.isnan(overrun), 0, np.searchsorted(LATE_EDGES, np.nan_to_num(overrun), side="right") + 1
    ).astype(np.int16)
    codes["last_scan"] = _last_scan(rng, population, status, codes["delivery_type"])
    codes["payment_status"] = _payment_status(rng, population, status, codes["payment_method"])
    codes["refund_status"] = pick(rng, population.refund_status, status)
    returned = np.isin(status, [code("order_status", name) for name in pop.RETURNED])
    codes["return_reason"] = np.where(returned, pick_one(rng, population.return_reason, n) + 1, 0).astype(np.int16)
    codes["voucher_state"] = pick_one(rng, population.voucher_state, n)
    for name in ("waiting", "delivery_type", "carrier", "category", "shop_type", "payment_method"):
        codes[name] = np.where(status > 0, codes[name], 0).astype(np.int16)  # facts of an order need an order
    hours = np.where(status > 0, hours, np.float32(np.nan))
    return State(region, codes, hours, overrun, _other_orders(rng, population, region))


def _overrun(rng: Rng, status: Codes, delivery_type: Codes, hours: Floats) -> Floats:
    moving = np.isin(status, [code("order_status", name) for name in pop.MOVING])
    promised = np.asarray((0, *pop.PROMISED_HOURS), np.float32)[delivery_type]
    earlier = lognormal(rng, promised * 0.35, 0.5, len(status))  # spent in earlier stages of the journey
    return np.where(moving, hours + earlier - promised, np.float32(np.nan)).astype(np.float32)


def _last_scan(rng: Rng, population: Population, status: Codes, delivery_type: Codes) -> Codes:
    scan = pick(rng, population.last_scan, status)
    early_scans = [code("last_scan", name) for name in ("Picked up", "At sorting centre")]
    held = (delivery_type == code("delivery_type", "Overseas")) & np.isin(scan, early_scans)
    scan[held & chance(rng, 0.55, len(scan))] = code("last_scan", "In customs")
    to_locker = delivery_type == code("delivery_type", "Pickup Locker")
    scan[to_locker & (scan == code("last_scan", "Handed to recipient"))] = code("last_scan", "Placed in locker")
    return scan


def _payment_status(rng: Rng, population: Population, status: Codes, method: Codes) -> Codes:
    paid = pick(rng, population.payment_status, status)
    undelivered = (status > 0) & (status <= code("order_status", "OUT_FOR_DELIVERY"))
    paid[undelivered & (method == code("payment_method", "Cash on Delivery"))] = code(
        "payment_status", "Due on delivery"
    )
    return paid


def _other_orders(rng: Rng, population: Population, region: Codes) -> Orders:
    n = len(region)
    lengths = np.minimum(rng.poisson(1.3, n), OTHER_ORDERS).astype(np.int32)
    owner = np.repeat(region, lengths)
    m = len(owner)
    hours = ages(rng, lengths, first=60.0, gap=200.0)
    status = pick_one(rng, population.order_status, m) + 1
    # An order that was last touched over three weeks ago is over.
    status = np.where(hours > 500, code("order_status", "COMPLETED"), status).astype(np.int16)
    values = {
        name: pick(rng, population.regional[name], owner) + 1 for name in ("category", "carrier", "payment_method")
    }
    return Orders(starts(lengths), status, hours=hours, **values)
