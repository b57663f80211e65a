"""How often each value occurs among users who open the chatbot, in plain tables.

These are assumptions, made up once and written down; docs/simulator.md says what they stand for.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from rgalign.data.simulator.words import REGIONS, WORDS, code

REGION_SHARE = (0.06, 0.10, 0.15, 0.24, 0.15, 0.12, 0.08, 0.10)

SHARE: dict[str, tuple[float, ...]] = {  # frequencies in vocabulary order; regions vary round them
    "gender": (0.40, 0.50, 0.10),
    "age_band": (0.04, 0.27, 0.35, 0.20, 0.10, 0.04),
    "tier": (0.50, 0.28, 0.16, 0.06),
    "tenure": (0.06, 0.16, 0.28, 0.50),
    "city_tier": (0.30, 0.35, 0.22, 0.13),
    "device": (0.66, 0.28, 0.06),
    "network": (0.48, 0.22, 0.26, 0.04),
    "app_release": (0.58, 0.22, 0.12, 0.08),
    "delivery_type": (0.50, 0.14, 0.12, 0.05, 0.12, 0.07),
    "carrier": (0.20, 0.16, 0.13, 0.11, 0.09, 0.07, 0.06, 0.05, 0.05, 0.04, 0.02, 0.02),
    "category": (0.10, 0.05, 0.08, 0.13, 0.07, 0.07, 0.05, 0.10, 0.05, 0.07, 0.05, 0.04, 0.06, 0.03, 0.03, 0.02),
    "shop_type": (0.46, 0.22, 0.22, 0.10),
    "payment_method": (0.20, 0.12, 0.22, 0.18, 0.08, 0.08, 0.04, 0.03, 0.04, 0.01),
    "return_reason": (0.22, 0.18, 0.13, 0.16, 0.06, 0.13, 0.08, 0.04),
    "order_status": (0.07, 0.04, 0.04, 0.12, 0.03, 0.05, 0.16, 0.12, 0.06, 0.11, 0.08, 0.04, 0.03, 0.03, 0.02),
}  # fmt: skip

# Hours spent in each order status when the chat opens (median).
STATUS_HOURS = (5, 6, 10, 40, 20, 30, 60, 50, 5, 24, 150, 36, 60, 70, 60)
PROMISED_HOURS = (96, 48, 168, 8, 288, 96)  # by delivery type, from hand-over to the door

Table = Mapping[str, Mapping[str, float]]
NONE = "-"

LAST_SCAN: Table = {
    "TO_SHIP": {NONE: 0.7, "Label created": 0.3},
    "SHIPPED": {"Label created": 0.12, "Picked up": 0.28, "At sorting centre": 0.42, "At local hub": 0.12,
                "Returning to sender": 0.03, "Parcel damaged in transit": 0.03},
    "TO_RECEIVE": {"At sorting centre": 0.30, "At local hub": 0.38, "Delivery attempt failed": 0.17,
                   "Returning to sender": 0.08, "Parcel damaged in transit": 0.04, "With the courier": 0.03},
    "OUT_FOR_DELIVERY": {"With the courier": 0.72, "Delivery attempt failed": 0.25, "Parcel damaged in transit": 0.03},
    "DELIVERED": {"Handed to recipient": 0.74, "Left with neighbour": 0.24, "Parcel damaged in transit": 0.02},
    "COMPLETED": {"Handed to recipient": 0.9, "Left with neighbour": 0.1},
    "CANCELLED": {NONE: 0.9, "Returning to sender": 0.1},
}  # fmt: skip

PAYMENT_STATUS: Table = {
    "UNPAID": {"Awaiting payment": 0.5, "Failed": 0.5},
    "PAYMENT_PENDING": {"Processing": 0.7, "Awaiting payment": 0.22, "Captured twice": 0.08},
    "TO_CONFIRM": {"Paid": 0.80, "Captured twice": 0.08, "Processing": 0.12},
    "TO_SHIP": {"Paid": 0.94, "Captured twice": 0.06},
    "SHIPPED": {"Paid": 0.98, "Captured twice": 0.02},
}

REFUND_STATUS: Table = {
    "CANCEL_REQUESTED": {"Waiting for seller": 0.6, NONE: 0.4},
    "CANCELLED": {"Approved": 0.35, "Paid out": 0.25, NONE: 0.4},
    "RETURN_REQUESTED": {"Under review": 0.45, "Waiting for seller": 0.33, "Rejected": 0.22},
    "RETURN_SHIPPING": {"Approved": 0.75, "Waiting for seller": 0.20, "Rejected": 0.05},
    "REFUND_PENDING": {"Approved": 0.72, "Under review": 0.22, "Rejected": 0.06},
    "REFUNDED": {"Paid out": 1.0},
    "COMPLETED": {NONE: 0.96, "Rejected": 0.04},
}

VOUCHER_STATE = {NONE: 0.52, "Applied": 0.16, "Expired": 0.10, "Minimum spend not reached": 0.09, "Fully claimed": 0.05,
                 "Not valid for this shop": 0.05, "Expiring today": 0.03}  # fmt: skip

RETURNED = ("RETURN_REQUESTED", "RETURN_SHIPPING", "REFUND_PENDING", "REFUNDED")
MOVING = ("SHIPPED", "TO_RECEIVE", "OUT_FOR_DELIVERY")


def by_status(table: Table, vocabulary: str, otherwise: str) -> NDArray[np.float64]:
    """[statuses + 1, V + 1] frequencies; column 0 is "none"; statuses that are not named have ``otherwise``."""
    out = np.zeros((len(WORDS["order_status"]) + 1, len(WORDS[vocabulary]) + 1))
    out[0, 0] = 1.0
    for row, status in enumerate(WORDS["order_status"], start=1):
        for name, share in table.get(status, {otherwise: 1.0}).items():
            out[row, 0 if name == NONE else code(vocabulary, name)] = share
    return out


def regional(vocabulary: str, seed: int) -> NDArray[np.float64]:
    """[regions, V] shares that vary from region to region (lognormal, sigma 0.5), the same for a seed."""
    # The vocabulary's own place keeps the streams of two vocabularies apart.
    rng = np.random.default_rng([seed, 1, list(WORDS).index(vocabulary)])
    spread = np.exp(0.5 * rng.standard_normal((len(REGIONS), len(WORDS[vocabulary]))))
    table = np.asarray(SHARE[vocabulary]) * spread
    return np.asarray(table / table.sum(axis=1, keepdims=True))
