"""The reward is the NDCG of the ranker's own scores with the candidate's latent query in the session's place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from rgalign.data.dataset import Dataset
from rgalign.errors import ProvenanceError
from rgalign.metrics.ranking import session_metrics
from rgalign.training.latents import LatentStore
from rgalign.training.ranker_files import load_ranker
from rgalign.training.reward import reward_model
from rgalign.training.reward.reward_model import RewardModel
from rgalign.training.stage1 import train_stage1


def test_it_is_the_rankers_ndcg_with_another_latent_query(echo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_model, "SCORES", 50)  # several pieces
    monkeypatch.setattr(reward_model, "ENCODE_SESSIONS", 7)
    loaded = load_ranker(echo.ranker)
    rows = np.array([3, 20, 21, 90, 91, 92, 150, 239])
    latents = LatentStore.open(echo.latents).take(np.arange(6))
    model = RewardModel(loaded, echo.dataset, "train", rows, k=3)
    sessions, chosen = (each.ravel() for each in np.meshgrid(np.arange(len(rows)), np.arange(6), indexing="ij"))
    found = model.rewards(sessions, model.queries(latents), chosen)

    table = echo.dataset.table("train").take(pa.array(rows[sessions])).combine_chunks()
    with torch.no_grad():
        batch = loaded.encoder.encode(table, latents[chosen])
        scores = loaded.ranker.eval().score(batch).total
    expected = session_metrics(scores, batch.clicked.numpy(), ks=(3,)).values["ndcg@3"]
    assert 0.1 < expected.mean() < 0.9
    np.testing.assert_allclose(found.reward, expected, atol=1e-9)
    clicked = batch.clicked[:, 0].numpy()
    own = scores.numpy()[np.arange(len(clicked)), clicked]
    others = np.where(np.arange(6) == clicked[:, None], -np.inf, scores.numpy()).max(axis=1)
    np.testing.assert_allclose(found.margin, own - others, atol=1e-6)


def test_without_a_query_it_is_the_user_part_alone(echo: Any) -> None:
    loaded = load_ranker(echo.ranker)
    model = RewardModel(loaded, echo.dataset, "valid", np.arange(10), k=5)
    with torch.no_grad():
        batch = loaded.encoder.encode(echo.dataset.table("valid").slice(0, 10).combine_chunks())
        expected = session_metrics(loaded.ranker.eval().score(batch).total, batch.clicked.numpy()).values["ndcg@5"]
    np.testing.assert_allclose(model.rewards(np.arange(10), None).reward, expected, atol=1e-9)


def test_the_user_tower_runs_once_a_session(echo: Any) -> None:
    loaded = load_ranker(echo.ranker)
    seen: list[int] = []
    loaded.ranker.user_tower.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    model = RewardModel(loaded, echo.dataset, "train", np.arange(5), k=5)
    latents = LatentStore.open(echo.latents).take(np.arange(6))
    for _ in range(3):
        model.rewards(np.repeat(np.arange(5), 6), model.queries(latents), np.tile(np.arange(6), 5))
    assert seen == [5]


def test_sessions_of_another_catalogue_are_refused(
    echo: Any, make_dataset: Callable[..., Dataset], tmp_path: Any
) -> None:
    with pytest.raises(ProvenanceError, match="the schema that the ranker was trained on"):
        RewardModel(load_ranker(echo.ranker), make_dataset(tmp_path / "other"), "train", np.arange(3), k=5)


def test_candidate_lists_are_respected(
    stage1_values: Callable[..., dict[str, Any]], small_dataset: Dataset, small_latents: LatentStore, tmp_path: Any
) -> None:
    from rgalign.training.stage1 import Stage1Config

    train_stage1(Stage1Config.model_validate(stage1_values(epochs=1)), tmp_path / "run")
    loaded = load_ranker(tmp_path / "run")
    rows = np.arange(60)
    model = RewardModel(loaded, small_dataset, "train", rows, k=2)
    latents = small_latents.take(small_latents.rows(small_dataset, "train")[rows])
    found = model.rewards(rows, model.queries(latents)).reward
    with torch.no_grad():
        batch = loaded.encoder.encode(small_dataset.table("train").slice(0, 60).combine_chunks(), latents)
        scores = loaded.ranker.eval().score(batch).total
    assert batch.candidates is not None
    expected = session_metrics(scores, batch.clicked.numpy(), batch.candidates.numpy(), ks=(2,)).values["ndcg@2"]
    whole = session_metrics(scores, batch.clicked.numpy(), ks=(2,)).values["ndcg@2"]
    assert not np.allclose(expected, whole)
    np.testing.assert_allclose(found, expected, atol=1e-9)
