"""The query tower learns to read the intents' own words, and a run that needs them says where they are missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rgalign.config import parse_config
from rgalign.data.dataset import Dataset
from rgalign.errors import ProvenanceError
from rgalign.files import sha256_file
from rgalign.training.latents import LatentStore
from rgalign.training.ranker_files import load_ranker
from rgalign.training.stage1 import Stage1Config, train_stage1

Values = Callable[..., dict[str, Any]]
WEIGHTS = "model/weights.safetensors"


@pytest.fixture
def titled(small_dataset: Dataset, small_latents: LatentStore, tmp_path: Path) -> LatentStore:
    """The same latent queries, and two random vectors for the words of each intent."""
    store = LatentStore.create(tmp_path / "titled", small_latents.provenance)
    count = len(small_latents)
    known = small_latents.take(np.arange(count))
    words = np.random.default_rng(5).normal(size=(2 * len(small_dataset.catalog), small_latents.dim)) * known.std()
    store.append([f"{row:016d}".encode() for row in range(count)], known)
    store.append([f"{count + row:016d}".encode() for row in range(len(words))], words.astype(np.float32))
    for split in ("train", "valid"):
        store.write_map(small_dataset, split, small_latents.rows(small_dataset, split))
    store.write_titles(small_dataset.catalog, count + np.arange(len(words)).reshape(-1, 2))
    return store


def config_of(values: dict[str, Any], weight: float, **changes: Any) -> Stage1Config:
    model = {**values["model"], "loss": {"title_weight": weight}}
    return parse_config(Stage1Config, {**values, "model": model, **changes}, where="test")


def own_intent_first(run: Path, dataset: Dataset, store: LatentStore) -> float:
    """Share of the texts for which the query part ranks the own intent first."""
    ranker = load_ranker(run).ranker.eval()
    rows = store.titles(dataset.catalog)
    with torch.no_grad():
        scores = ranker.query(torch.from_numpy(store.take(rows.ravel()))) @ ranker.intents().T
    own = torch.arange(len(rows)).repeat_interleave(rows.shape[1])
    return float((scores.argmax(1) == own).float().mean())


def test_the_query_part_learns_to_rank_the_own_intent_first(
    stage1_values: Values, small_dataset: Dataset, titled: LatentStore, tmp_path: Path
) -> None:
    shares = {}
    for weight in (0.0, 1.0):
        config = config_of(stage1_values(latents=str(titled.path), epochs=12, patience=12), weight)
        train_stage1(config, tmp_path / str(weight))
        shares[weight] = own_intent_first(tmp_path / str(weight), small_dataset, titled)
    assert shares[1.0] > shares[0.0] + 0.4


def test_a_killed_run_draws_the_same_titles(stage1_values: Values, titled: LatentStore, tmp_path: Path) -> None:
    config = config_of(stage1_values(latents=str(titled.path)), 1.0)

    def kill(step: int) -> None:
        if step == 17:
            raise KeyboardInterrupt

    train_stage1(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_stage1(config, tmp_path / "killed", on_step=kill)
    train_stage1(config, tmp_path / "killed")
    assert sha256_file(tmp_path / "killed" / WEIGHTS) == sha256_file(tmp_path / "whole" / WEIGHTS)


def test_without_titles_the_loss_says_how_to_make_them(stage1_values: Values, tmp_path: Path) -> None:
    with pytest.raises(ProvenanceError, match="titles=true"):
        train_stage1(config_of(stage1_values(), 1.0), tmp_path / "run")
