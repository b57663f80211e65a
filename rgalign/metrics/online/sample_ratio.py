"""Sample ratio mismatch: were users split between the arms as they were meant to be?

    chi2 = sum over arms (observed - expected)^2 / expected, one degree of freedom,  p = erfc(sqrt(chi2 / 2))

If not, something that depends on the arm decides who is in the log (a crash, a redirect, a late log), and no
difference between the arms can be read as an effect. Fabijan et al. (KDD 2019); their threshold, 0.0005 to 0.001.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rgalign.errors import DataError

ALPHA = 0.001


@dataclass(frozen=True)
class SampleRatio:
    """Args: control, treatment: users; share: of the treatment, expected; alpha: threshold of ``p_value``."""

    control: int
    treatment: int
    share: float
    p_value: float
    alpha: float

    @property
    def mismatch(self) -> bool:
        return self.p_value < self.alpha


def sample_ratio(control: int, treatment: int, share: float = 0.5, alpha: float = ALPHA) -> SampleRatio:
    """Tests the split of users.

    Args:
        share: of all users that the treatment was meant to have.

    Raises:
        DataError: no users, or a share that is none.
    """
    users = control + treatment
    if users < 1 or not 0 < share < 1:
        required = "users, and a share of the treatment between 0 and 1"
        raise DataError(where="sample ratio", required=required, received=f"{users} users, share {share:g}")
    chi2 = (treatment - share * users) ** 2 / (users * share * (1 - share))
    return SampleRatio(control, treatment, share, math.erfc(math.sqrt(chi2 / 2)), alpha)
