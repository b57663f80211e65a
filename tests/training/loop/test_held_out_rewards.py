"""The reward curve of held-out sessions: what is measured before training, by hand from the run's own files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rgalign.config import load_config, parse_config
from rgalign.data.dataset import Dataset
from rgalign.errors import DataError, ProvenanceError
from rgalign.files import read_json
from rgalign.training.alignment.alignment_config import AlignmentConfig
from rgalign.training.alignment.alignment_inputs import AlignmentInputs
from rgalign.training.alignment.held_out_rewards import HeldOutRewards
from rgalign.training.latents import LatentStore
from rgalign.training.loop.loop import run_loop
from rgalign.training.loop.loop_config import LoopConfig
from rgalign.training.ranker_files import load_ranker
from rgalign.training.ranker_scores import score_split
from rgalign.training.reward.folds import fold_column

Values = Callable[..., dict[str, Any]]
K = 5


@pytest.fixture(scope="module")
def finished(loop_values: Values, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("rewards") / "run"
    # So many sessions that the ranker is wrong about some; bf16, beside the rankers' float32 in one process.
    values = loop_values(alignment={"held_out": 0.5, "precision": "bf16"})
    run_loop(parse_config(LoopConfig, values, where="test"), run, progress=False)
    return run


@pytest.fixture
def inputs(finished: Path) -> AlignmentInputs:
    config = load_config(AlignmentConfig, finished / "round1/sft/out/config.yaml")
    assert config.rewards == finished / "round1/reward/out"
    return AlignmentInputs.open(config, "sft")


def test_the_first_reward_is_that_of_the_frozen_latent_query_under_the_ranker_of_its_fold(
    finished: Path, inputs: AlignmentInputs
) -> None:
    trained, held_out = inputs.sessions()
    items, dataset = inputs.preferences.items, inputs.dataset
    store = LatentStore.open(finished / "embed/out")
    latents = store.take(store.rows(dataset, "train"))
    ours = [items[session.row].split_row for session in trained]
    targets = np.load(finished / "round1/select/out/chosen_latents.npy")[[session.row for session in trained]]
    fold = fold_column(dataset, "train", "user", 2, 0)
    rankers = [load_ranker(path) for path in sorted((finished / "round1/reward/out/folds").glob("*/run"))]
    expected = []
    for session in held_out:
        row = items[session.row].split_row
        standard = (latents[row] - latents[ours].mean(0)) / latents[ours].std(0)
        moved = torch.from_numpy(standard * targets.std(0) + targets.mean(0))[None]
        loaded = rankers[fold[row]]
        with torch.no_grad():
            query = (1 - loaded.ranker.omega) * loaded.ranker.query(moved) @ loaded.ranker.intents().T
        scores = score_split(loaded, dataset, "train", store).user_part[row] + query[0].numpy()
        rank = 1 + int((scores > scores[items[session.row].clicked[0]]).sum())
        expected.append(1 / np.log2(1 + rank) if rank <= K else 0.0)
    assert 0 < np.mean(expected) < 1
    metrics = read_json(finished / "round1/sft/out/metrics.json")
    assert metrics["before"]["eval_reward"] == pytest.approx(np.mean(expected), abs=1e-5)
    assert "eval_reward" in read_json(finished / "round1/align/out/metrics.json")["after"]
    assert "reward of h" in (finished / "round1/align/out/curves.html").read_text()


def test_rewards_of_other_sessions_or_none_are_refused(finished: Path, inputs: AlignmentInputs, tmp_path: Path) -> None:
    trained, held_out = inputs.sessions()
    rows = [session.row for session in held_out]
    targets = inputs.targets(trained, 32)
    assert targets is not None
    with pytest.raises(DataError, match="a finished run of `rgalign train reward`"):
        HeldOutRewards(tmp_path, inputs.dataset, inputs.preferences, rows, targets)
    other = Dataset.open(next((finished / "round1/reward/out/folds").glob("*/data")))
    with pytest.raises(ProvenanceError, match="rewards of the sessions of"):
        HeldOutRewards(finished / "round1/reward/out", other, inputs.preferences, rows, targets)
