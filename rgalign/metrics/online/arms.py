"""Two arms compared in a ratio of sums, users as the independent units (delta method).

    R = sum_u x_u / sum_u y_u                         x_u, y_u: sums over the sessions of user u of one arm
    var R = n / (n - 1) * sum_u (x_u - R y_u)^2 / (sum_u y_u)^2
    difference   R_t - R_c  +- z sqrt(var_t + var_c)
    relative     R_t / R_c - 1, limits exp(log(R_t / R_c) +- z sqrt(var_t / R_t^2 + var_c / R_c^2)) - 1

Deng, Knoblich, Lu: Applying the Delta Method in Metric Analytics (KDD 2018). Treating sessions as independent, where
users have several, calls differences significant that are not: tests/metrics/test_online_arms.py measures it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from rgalign.errors import DataError
from rgalign.metrics.online.ratios import Ratio
from rgalign.metrics.significance import LEVEL, MIN_UNITS, Interval, Verdict

POWER = 0.8
NORMAL = NormalDist()

Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ArmRatio:
    """One arm's ratio.

    Args:
        value: with its interval.
        variance: of the estimate.
        users: whose sessions count; total: the sum of denominators.
    """

    value: Interval
    variance: float
    users: int
    total: float


@dataclass(frozen=True)
class ArmComparison:
    """Treatment against control.

    Args:
        difference: treatment - control.
        relative: treatment / control - 1; None where an arm's ratio is 0.
        z, p_value: of no difference, two-sided, normal.
        detectable: the least true difference that such data finds in 80 % of experiments.
    """

    control: ArmRatio
    treatment: ArmRatio
    difference: Interval
    relative: Interval | None
    z: float
    p_value: float
    detectable: float

    @property
    def verdict(self) -> Verdict:
        return self.difference.verdict


def compare_arms(ratio: Ratio, treated: Flags, users: Ints, *, level: float = LEVEL, where: str = "") -> ArmComparison:
    """Compares the two arms.

    Args:
        treated, users: [S] arm and user of each session.
        where: named in errors.

    Raises:
        DataError: an arm with fewer than two users whose sessions count.
    """
    control, treatment = (
        arm_ratio(ratio.x[mask], ratio.y[mask], users[mask], level=level, where=f"{where}, {name}")
        for name, mask in (("control", ~treated), ("treatment", treated))
    )
    difference = treatment.value.estimate - control.value.estimate
    error = math.sqrt(treatment.variance + control.variance)
    z = difference / error if error > 0 else 0.0
    reach = quantile(level) * error
    return ArmComparison(
        control,
        treatment,
        Interval(difference, difference - reach, difference + reach),
        _relative(control, treatment, level),
        z,
        math.erfc(abs(z) / math.sqrt(2)),
        (quantile(level) + NORMAL.inv_cdf(POWER)) * error,
    )


def arm_ratio(
    x: NDArray[np.float64], y: NDArray[np.float64], users: Ints, *, level: float = LEVEL, where: str = ""
) -> ArmRatio:
    """One arm's ratio of sums with its interval.

    Raises:
        DataError: fewer than two users whose sessions count.
    """
    counted = y > 0
    codes = np.unique(users[counted], return_inverse=True)[1]
    num_users = int(codes.max(initial=-1)) + 1
    if num_users < MIN_UNITS:
        required = f"at least {MIN_UNITS} users with sessions that count"
        raise DataError(where=where or "arm", required=required, received=str(num_users))
    sum_x, sum_y = (np.bincount(codes, weights=values[counted], minlength=num_users) for values in (x, y))
    value, total = float(sum_x.sum() / sum_y.sum()), float(sum_y.sum())
    residuals = sum_x - value * sum_y
    variance = float(residuals @ residuals) * num_users / (num_users - 1) / total**2
    reach = quantile(level) * math.sqrt(variance)
    return ArmRatio(Interval(value, value - reach, value + reach), variance, num_users, total)


def quantile(level: float) -> float:
    """Half width of a normal interval in standard errors."""
    return NORMAL.inv_cdf((1 + level) / 2)


def _relative(control: ArmRatio, treatment: ArmRatio, level: float) -> Interval | None:
    base, ours = control.value.estimate, treatment.value.estimate
    if base <= 0 or ours <= 0:
        return None
    reach = quantile(level) * math.sqrt(treatment.variance / ours**2 + control.variance / base**2)
    change = math.log(ours / base)
    return Interval(*(math.expm1(change + step) for step in (0.0, -reach, reach)))
