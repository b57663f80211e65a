"""Cohen's kappa: published and hand-made values, coverage of its interval, degenerate labels."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from rgalign.errors import DataError
from rgalign.metrics.online.agreement import cohens_kappa
from rgalign.metrics.significance import Resampling

HOW = Resampling(resamples=500)


def test_kappa_is_scikit_learn_s() -> None:
    rng = np.random.default_rng(0)
    human = rng.integers(5, size=200)
    judge = np.where(rng.random(200) < 0.7, human, rng.integers(5, size=200))
    found = cohens_kappa(judge.tolist(), human.tolist(), how=HOW)
    assert found.kappa.estimate == pytest.approx(cohen_kappa_score(judge, human))
    assert found.equal == pytest.approx((judge == human).mean())
    assert found.kappa.low < found.kappa.estimate < found.kappa.high
    assert found.sessions == 200


def test_no_intent_is_a_label_like_any_other() -> None:
    judge, human = [None, None, "a", "a"], [None, "a", "a", None]
    assert cohens_kappa(judge, human, how=HOW).kappa.estimate == pytest.approx(0.0)
    assert cohens_kappa(human, human, how=HOW).kappa.estimate == 1


def test_the_interval_covers_the_true_kappa() -> None:
    """Judge and human agree in 0.6 + 0.4 / 4 of the sessions, by chance in 1 / 4: kappa = 0.6."""
    rng = np.random.default_rng(3)
    inside = []
    for _ in range(120):
        human = rng.integers(4, size=150)
        judge = np.where(rng.random(150) < 0.6, human, rng.integers(4, size=150))
        kappa = cohens_kappa(judge.tolist(), human.tolist(), how=Resampling(resamples=300)).kappa
        inside.append(kappa.low < 0.6 < kappa.high)
    assert 0.87 <= np.mean(inside) <= 0.99


def test_sessions_of_a_user_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    human = np.repeat(rng.integers(3, size=40), 10)
    judge = np.where(np.repeat(rng.random(40) < 0.5, 10), human, (human + 1) % 3)
    users = np.repeat(np.arange(40), 10)
    alone, together = (cohens_kappa(judge.tolist(), human.tolist(), each, HOW).kappa for each in (None, users))
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_labels_that_tell_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="more than one label"):
        cohens_kappa(["a"] * 5, ["a"] * 5)
    with pytest.raises(DataError, match="at least 2"):
        cohens_kappa(["a"], ["b"])
    with pytest.raises(DataError, match="3 labels of the judge"):
        cohens_kappa(["a"], ["b"] * 3)
