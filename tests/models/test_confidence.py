"""Confidence weights: no collapse, bounds, and on clicks of which a fifth were flipped they find the flipped ones."""

from dataclasses import replace
from functools import cache

import numpy as np
import pyarrow as pa
import pytest
import torch

from rgalign.data.encode import NumericStats, SessionBatch, SessionEncoder
from rgalign.intents import IntentCatalog
from rgalign.models import QERecConfig, build_ranker
from rgalign.models.confidence import ConfidenceConfig, ConfidenceWeights, Surprise
from rgalign.models.loss import ListBuilder, LossConfig
from rgalign.models.user_tower import UserTowerConfig
from rgalign.schema import FeatureSchema

NUM_INTENTS, NUM_FEATURES, NUM_VALUES = 30, 4, 6
FLIPPED = 0.2
WEIGHTS = np.random.default_rng(0).normal(size=(NUM_FEATURES, NUM_VALUES, NUM_INTENTS)) * 1.5
CATALOG = IntentCatalog(tuple(f"{n:02d}" for n in range(NUM_INTENTS)), ("t",) * NUM_INTENTS, ("",) * NUM_INTENTS)
SCHEMA = FeatureSchema.model_validate(
    {
        "name": "flipped",
        "vocabularies": {"v": {str(n): str(n) for n in range(NUM_VALUES)}},
        "features": [
            {"kind": "categorical", "name": f"x{f}", "dimension": "context", "vocabulary": "v"}
            for f in range(NUM_FEATURES)
        ],
    }
)


POPULARITY = np.log(np.arange(1, NUM_INTENTS + 1)) * -1.2  # Zipf, as catalogues are


def synthetic(count: int, seed: int, flipped: float, *, popular: bool = False) -> tuple[SessionBatch, np.ndarray]:
    """Clicks drawn from a softmax of the features, a share of them replaced; and which.

    Replaced by any intent, or, where some are more popular than others, by one drawn by popularity: such clicks are
    less surprising than the rare ones that are true.
    """
    rng = np.random.default_rng(seed)
    values = rng.integers(0, NUM_VALUES, (count, NUM_FEATURES))
    logits = sum(WEIGHTS[f][values[:, f]] for f in range(NUM_FEATURES)) + rng.gumbel(size=(count, NUM_INTENTS))
    noise = rng.random(count) < flipped
    drawn = rng.integers(0, NUM_INTENTS, count)
    if popular:
        logits = logits + POPULARITY
        drawn = (rng.gumbel(size=(count, NUM_INTENTS)) + 1.5 * POPULARITY).argmax(axis=1)
    clicked = np.where(noise, drawn, logits.argmax(axis=1))
    columns = {f"x{f}": pa.array(values[:, f].astype(str)) for f in range(NUM_FEATURES)}
    table = pa.table(columns | {"clicked": pa.array([[f"{row:02d}"] for row in clicked])})
    return SessionEncoder(SCHEMA, CATALOG, NumericStats({})).encode(table), noise


@cache
def trained(confidence: bool, seed: int = 0, *, popular: bool = False) -> tuple[np.ndarray, np.ndarray, float]:
    """(last weights of the training sessions, which were flipped, NDCG on clean sessions)."""
    (train, noise), (test, _) = (synthetic(2000, 1, FLIPPED, popular=popular), synthetic(2000, 2, 0.0, popular=popular))
    torch.manual_seed(seed)
    config = QERecConfig(
        dim=16, user=UserTowerConfig(hidden=(64,)), confidence=ConfidenceConfig() if confidence else None
    )
    ranker = build_ranker(config, SCHEMA, CATALOG)
    ranker.set_statistics(torch.bincount(train.clicked.flatten(), minlength=NUM_INTENTS))
    optimizer = torch.optim.AdamW(ranker.parameters(), lr=3e-3, weight_decay=0.01)
    weights = torch.zeros(len(train))
    for epoch in range(12):
        ranker.train()
        for rows in torch.randperm(len(train)).split(200):
            loss = ranker(train.select(rows), epoch=epoch)
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()
            weights[rows] = loss.weights
    with torch.no_grad():
        scores = ranker.eval().score(test).total
    ranks = (scores > scores.gather(1, test.clicked)).sum(dim=1) + 1
    return weights.numpy(), noise, (1 / torch.log2(ranks + 1.0)).mean().item()


def auc(clean: np.ndarray, noisy: np.ndarray) -> float:
    return float((clean[:, None] > noisy).mean() + (clean[:, None] == noisy).mean() / 2)


@pytest.mark.parametrize("popular", [False, True])
def test_weights_separate_flipped_clicks(popular: bool) -> None:
    weights, noise, _ = trained(True, popular=popular)
    assert auc(weights[~noise], weights[noise]) > 0.7
    assert weights[~noise].mean() > 1.25 * weights[noise].mean()


def test_weighting_does_not_cost_quality() -> None:
    weighted, plain = (np.mean([trained(flag, seed)[2] for seed in (0, 1)]) for flag in (True, False))
    assert plain > 0.5  # the models did learn
    assert weighted >= plain - 0.005  # the width of the noise between seeds


def test_weights_do_not_collapse() -> None:
    weights, _, _ = trained(True)
    assert weights.mean() == pytest.approx(1.0, abs=0.1)
    assert weights.min() >= 0.1
    assert weights.max() <= 10.0
    assert np.quantile(weights, 0.9) > 1.1


def predictor(**config: float) -> tuple[ConfidenceWeights, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    weights = ConfidenceWeights(ConfidenceConfig.model_validate(config), 4, [3])
    return weights, torch.randn(32, 4, requires_grad=True), torch.randint(0, 3, (32, 1))


def surprised(session: torch.Tensor, valid: torch.Tensor | None = None) -> Surprise:
    """By chance every click costs 2 nats."""
    return Surprise(session, torch.full_like(session, 2.0), torch.ones_like(session).bool() if valid is None else valid)


def test_the_prior_is_the_share_of_clicks_that_the_session_explains() -> None:
    confidence, user, context = predictor()
    session = torch.where(torch.arange(32) < 24, -6.0, 10.0)  # beyond doubt: 24 of 32 clicks are the session's own
    context, user = torch.zeros_like(context), torch.zeros_like(user)  # nothing to tell the sessions apart
    optimizer = torch.optim.Adam(confidence.parameters(), lr=0.01)
    for _ in range(500):
        _, loss = confidence(user, None, context, surprised(session), epoch=1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights, _ = confidence(user, None, context, surprised(torch.linspace(0, 4, 32)), epoch=1)
    posterior = 1 / (1 + (8 / 24) * (torch.linspace(0, 4, 32) - 2.0).exp())  # prior odds 3 by the likelihood ratio
    torch.testing.assert_close(weights, posterior / posterior.mean(), atol=0.02, rtol=0.02)


def test_popularity_of_a_list_is_corrected_as_its_scores_are() -> None:
    """Scores equal to log popularity know nothing of the session: on every kind of list both surprises are the same."""
    torch.manual_seed(0)
    clicked = torch.tensor([[1], [4], [2]])
    slates = torch.tensor([[1, 3, 0], [4, 2, -1], [2, 0, 1]])
    for config in ({}, {"sampled_negatives": 5}, {"sampled_negatives": 5, "proposal": "popularity"}):
        lists = ListBuilder(LossConfig.model_validate({"logit_scale": "fixed", "logit_scale_init": 1.0} | config), 6)
        lists.clicks.copy_(torch.tensor([5.0, 1, 7, 2, 3, 1]))
        scores = (lists.clicks + 0.5).log().expand(3, 6)
        for candidates in (None, slates):
            batch = replace(synthetic(3, 0, 0.0)[0], clicked=clicked, candidates=candidates)
            found = Surprise.of(lists(scores, batch))
            torch.testing.assert_close(found.session, found.chance)
            assert (found.session > 0).all()


def test_towers_get_no_gradient_from_the_predictor() -> None:
    confidence, user, context = predictor()
    weights, loss = confidence(user, user, context, surprised(torch.rand(32)), epoch=1)
    loss.backward()
    assert user.grad is None
    assert not weights.requires_grad
    assert confidence.mlp[0].weight.grad.abs().sum() > 0


def test_warm_up_bounds_and_lists_without_a_click() -> None:
    confidence, user, context = predictor(warmup_epochs=2, minimum=0.5, maximum=1.25)
    surprise = torch.rand(32) * 5
    assert confidence(user, None, context, surprised(surprise), epoch=1)[0].eq(1).all()
    with torch.no_grad():
        confidence.mlp[-1].weight.mul_(100)
    weights, _ = confidence(user, None, context, surprised(surprise), epoch=2)
    assert (weights.min().item(), weights.max().item()) == (0.5, 1.25)
    half = torch.arange(32) < 16
    changed = torch.where(half, surprise, 99.0)
    first, loss = confidence(user, None, context, surprised(surprise, half), epoch=2)
    second, loss_changed = confidence(user, None, context, surprised(changed, half), epoch=2)
    assert torch.equal(first[:16], second[:16])
    assert loss == loss_changed


def test_a_slate_without_a_known_intent_is_harmless(sessions) -> None:
    ranker = sessions.ranker(QERecConfig(dim=8, confidence=ConfidenceConfig()))
    batch = sessions.batch(8, slates=True)
    batch.candidates[3] = -1
    loss = ranker.loss(batch, epoch=1)
    loss.total.backward()
    assert loss.num_lists == 7
    assert loss.weights.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in ranker.parameters())


def test_inference_does_not_read_the_predictor(sessions) -> None:
    ranker = sessions.ranker(QERecConfig(dim=8, confidence=ConfidenceConfig())).eval()
    before = ranker.score(sessions.batch()).total
    with torch.no_grad():
        for parameter in ranker.confidence.parameters():
            parameter.fill_(float("nan"))
    assert torch.equal(ranker.score(sessions.batch()).total, before)
