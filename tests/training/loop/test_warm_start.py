"""Warm start of a ranker: where it begins, what is recomputed, what is refused; older runs keep their identity."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rgalign.data.dataset import Dataset
from rgalign.errors import ProvenanceError
from rgalign.training.latents import LatentStore
from rgalign.training.ranker_files import load_ranker
from rgalign.training.stage1 import train_stage1
from rgalign.training.stage1_config import Stage1Config
from rgalign.training.stage1_inputs import Stage1Inputs

Values = Callable[..., dict[str, Any]]
STILL = {"learning_rate": 1e-12, "weight_decay": 0.0}


def config_of(values: dict[str, Any]) -> Stage1Config:
    return Stage1Config.model_validate(values)


@pytest.fixture(scope="module")
def first(stage1_values: Values, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("first") / "run"
    train_stage1(config_of(stage1_values()), run)
    return run


@pytest.fixture(scope="module")
def moved(small_dataset: Dataset, small_latents: LatentStore, tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    """Another reasoner: every latent query twice as long and moved by one."""
    store = LatentStore.create(tmp_path_factory.mktemp("moved") / "store", {**small_latents.provenance, "model": "new"})
    store.append([f"{row:016d}".encode() for row in range(len(small_latents))], 2 * all_rows(small_latents) + 1)
    for split in ("train", "valid", "test"):
        store.write_map(small_dataset, split, small_latents.rows(small_dataset, split))
    return store


def all_rows(store: LatentStore) -> Any:
    return store.take(np.arange(len(store)))


def test_without_a_warm_start_the_identity_has_no_such_key(stage1_values: Values, first: Path) -> None:
    config = config_of(stage1_values())
    assert "warm_start" not in config.identity()
    assert "warm_start" not in Stage1Inputs.open(config).identity
    warm = Stage1Inputs.open(config_of(stage1_values(warm_start=first))).identity
    assert warm == {**Stage1Inputs.open(config).identity, "warm_start": load_ranker(first).hash}


def test_training_begins_with_the_weights_and_standardises_the_new_latent_queries(
    stage1_values: Values, first: Path, moved: LatentStore, tmp_path: Path
) -> None:
    values = stage1_values(warm_start=first, latents=moved.path, epochs=1, optimiser=STILL, seed=5)
    train_stage1(config_of(values), tmp_path / "run")
    before, after = load_ranker(first).ranker, load_ranker(tmp_path / "run").ranker
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(new, old, atol=1e-8, rtol=0, msg=name)
    old, new = before.query_tower, after.query_tower
    assert old is not None
    assert new is not None
    assert old.input_norm == "standardize"
    torch.testing.assert_close(new.mean, 2 * old.mean + 1)
    torch.testing.assert_close(new.scale, 2 * old.scale)
    # so an affine move of the latent space changes no query vector
    latents = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(after.query(2 * latents + 1), before.query(latents), atol=1e-5, rtol=1e-5)


def test_the_query_tower_trains_alone(stage1_values: Values, first: Path, moved: LatentStore, tmp_path: Path) -> None:
    values = stage1_values(warm_start=first, latents=moved.path, epochs=1, trained="query")
    train_stage1(config_of(values), tmp_path / "run")
    before, after = load_ranker(first).ranker.state_dict(), load_ranker(tmp_path / "run").ranker.state_dict()
    changed = {name for name, weights in after.items() if not torch.equal(weights, before[name])}
    learned, standardisation = {"linear.weight", "linear.bias"}, {"mean", "scale"}
    assert changed == {f"query_tower.{name}" for name in learned | standardisation}


def test_the_query_tower_alone_needs_something_to_go_on_with(stage1_values: Values) -> None:
    with pytest.raises(ValueError, match="goes on with the query tower of a warm_start"):
        config_of(stage1_values(trained="query"))
    assert "trained" not in config_of(stage1_values()).identity()


def test_a_warm_start_that_would_mean_something_else_is_refused(
    stage1_values: Values, first: Path, make_dataset: Any, make_latents: Any, tmp_path: Path
) -> None:
    fewer = make_dataset(tmp_path / "fewer", num_train=200)
    store = make_latents(tmp_path / "store", fewer)
    others = {"dataset": fewer.path, "latents": store.path}
    with pytest.raises(ProvenanceError, match="warm start from .*train"):
        train_stage1(config_of(stage1_values(warm_start=first, **others)), tmp_path / "run")
    wider = {**stage1_values()["model"], "dim": 16}
    with pytest.raises(ProvenanceError, match="config.model"):
        train_stage1(config_of(stage1_values(warm_start=first, model=wider)), tmp_path / "run")
    with pytest.raises(ProvenanceError, match="width of the latent queries None"):
        train_stage1(config_of(stage1_values(warm_start=first, latents=None)), tmp_path / "run")
    with pytest.raises(ProvenanceError, match="a trained ranker"):
        train_stage1(config_of(stage1_values(warm_start=tmp_path / "none")), tmp_path / "run")
    assert not (tmp_path / "run").exists()
