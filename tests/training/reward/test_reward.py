"""The reward from configuration to rewards.parquet, on a tiny reasoner and rankers trained for it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from rgalign.cli import app
from rgalign.config import dump_config, load_config
from rgalign.errors import ConfigError, DataError, ProvenanceError, RewardError
from rgalign.files import read_json, write_json
from rgalign.training.embed import EmbedConfig
from rgalign.training.latents import LatentStore
from rgalign.training.reward import reward as reward_module
from rgalign.training.reward.reward import reward
from rgalign.training.reward.reward_config import RewardConfig
from rgalign.training.reward.rewards_file import read_rewards
from rgalign.training.stage1 import train_stage1
from rgalign.training.stage1_config import Stage1Config


def config(echo: Any, **changes: Any) -> RewardConfig:
    values = {"candidates": echo.candidates, "ranker": echo.ranker, "folds": 2, "k": 3, "gate_sessions": 60}
    return RewardConfig.model_validate({**values, **changes})


@pytest.fixture(scope="module")
def judged(echo: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("judged") / "out"
    reward(config(echo), out, progress=False)
    return out


def test_every_usable_candidate_is_judged(echo: Any, judged: Path) -> None:
    metrics = read_json(judged / "metrics.json")
    rows = read_rewards(judged).to_pylist()
    kept = [each for each in pq.read_table(echo.candidates / "candidates.parquet").to_pylist() if each["kept"]]
    assert [(each["session_id"], each["teacher"], each["query"]) for each in rows] == [
        (each["session_id"], each["teacher"], each["query"]) for each in kept
    ]
    assert metrics["placement"] == "slots"
    assert metrics["gate"][0]["share"] >= 0.75
    assert {each["fold"] for each in rows} == {0, 1}
    assert all(0 <= each["reward"] <= 1 for each in rows)
    assert all(-1.001 <= each["cosine"] <= 1.001 for each in rows)
    assert metrics["priority"] == ["transition", "neighbour", "reasoner"]


def test_a_query_that_says_the_click_is_worth_more(echo: Any, judged: Path) -> None:
    names = echo.dataset.catalog.names
    clicked = echo.dataset.table("train", ["clicked"]).column(0).to_pylist()
    rows = [each for each in read_rewards(judged).to_pylist() if each["teacher"] == "reasoner"]
    says = np.array([names[clicked[each["row"]][0]] in each["query"] for each in rows])
    rewards = np.array([each["reward"] for each in rows])
    assert 20 < says.sum() < len(says) - 20
    assert rewards[says].mean() > rewards[~says].mean() + 0.1
    cosines = np.array([each["cosine"] for each in rows])
    assert cosines[says].mean() > cosines[~says].mean()


def test_equal_texts_of_a_session_have_equal_rewards(judged: Path) -> None:
    rewards: dict[tuple[str, str], set[float]] = {}
    for each in read_rewards(judged).to_pylist():
        rewards.setdefault((each["session_id"], each["query"]), set()).add(each["reward"])
    assert all(len(values) == 1 for values in rewards.values())


def test_a_text_is_embedded_once_for_all_sessions(judged: Path) -> None:
    tokens = read_json(judged / "metrics.json")["tokens"]
    rows = read_rewards(judged).to_pylist()
    distinct = len({each["query"] for each in rows})
    assert len({each["latent"] for each in rows}) == distinct < len(rows) / 4
    assert tokens["embedded"] <= distinct + 6  # and the titles of the gate
    assert tokens["computed_tokens"] < tokens["prompt_tokens"]
    assert len(LatentStore.open(judged / "latents")) == tokens["embedded"]


def test_a_killed_run_goes_on_with_what_it_has(
    echo: Any, judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(reward_module, "write_rewards", killed)
    with pytest.raises(KeyboardInterrupt):
        reward(config(echo), out, progress=False)
    monkeypatch.undo()
    assert not (out / "done").exists()
    embedded = len(LatentStore.open(out / "latents"))
    metrics = reward(config(echo), out, progress=False)
    assert metrics["tokens"]["embedded"] == 0
    assert len(LatentStore.open(out / "latents")) == embedded
    assert read_rewards(out).equals(read_rewards(judged))
    assert reward(config(echo), out, progress=False) == metrics
    with pytest.raises(ProvenanceError, match="config.k 3"):
        reward(config(echo, k=4), out, progress=False)
    again = reward(config(echo, k=1), out, restart=True, progress=False)
    assert (again["k"], again["tokens"]["embedded"], again["rankers"]) == (1, 0, metrics["rankers"])


def test_a_gate_that_nothing_passes_refuses_and_keeps_the_parts(echo: Any, tmp_path: Path, judged: Path) -> None:
    out = tmp_path / "out"
    strict = config(echo, gate_share=1.0, placement="appended", gate_sessions=30)
    out.mkdir()
    (out / "stray").write_text("")
    with pytest.raises(ProvenanceError, match=r"a directory without inputs.json"):
        reward(strict, out, progress=False)
    (out / "stray").unlink()
    with pytest.raises(RewardError, match=r"gate of the reward model: required .* 100% .*received appended: \d+"):
        reward(strict, out, progress=False)
    assert {path.name for path in (out / "folds").iterdir()} == {path.name for path in (judged / "folds").iterdir()}
    assert not (out / "rewards.parquet").exists()
    assert not (out / "done").exists()


def test_another_reasoner_is_refused(echo: Any, tmp_path: Path) -> None:
    embedding = load_config(EmbedConfig, echo.latents / "embed.yaml")
    kept = (echo.latents / "embed.yaml").read_bytes()
    try:
        dump_config(embedding.model_copy(update={"pooling": "eos"}), echo.latents / "embed.yaml")
        with pytest.raises(ProvenanceError, match="required pooling 'ltp'; received pooling 'eos'"):
            reward(config(echo), tmp_path / "out", progress=False)
    finally:
        (echo.latents / "embed.yaml").write_bytes(kept)


def test_a_ranker_without_latent_queries_is_refused(echo: Any, tmp_path: Path, make_stage1: Callable[..., Any]) -> None:
    plain = make_stage1(echo.dataset, None, epochs=1)
    train_stage1(plain, tmp_path / "ranker")
    with pytest.raises(ConfigError, match="ranker with a query tower"):
        reward(config(echo, ranker=tmp_path / "ranker"), tmp_path / "out", progress=False)


def test_a_warm_started_ranker_is_refused(echo: Any, tmp_path: Path) -> None:
    shutil.copytree(echo.ranker, tmp_path / "ranker")
    trained = load_config(Stage1Config, echo.ranker / "config.yaml")
    dump_config(trained.model_copy(update={"warm_start": echo.ranker}), tmp_path / "ranker" / "config.yaml")
    with pytest.raises(ConfigError, match="trained from scratch"):
        reward(config(echo, ranker=tmp_path / "ranker"), tmp_path / "out", progress=False)


def test_candidates_of_other_sessions_are_refused(echo: Any, tmp_path: Path) -> None:
    shutil.copytree(echo.candidates, tmp_path / "candidates")
    inputs = read_json(tmp_path / "candidates" / "inputs.json")
    write_json(tmp_path / "candidates" / "inputs.json", {**inputs, "split": "0" * 64})
    with pytest.raises(
        ProvenanceError, match=r"candidates of the ranker's train \([0-9a-f]{12}\); received 000000000000"
    ):
        reward(config(echo, candidates=tmp_path / "candidates"), tmp_path / "out", progress=False)
    with pytest.raises(DataError, match="finished run of `rgalign train generate`"):
        reward(config(echo, candidates=tmp_path), tmp_path / "out", progress=False)
    with pytest.raises(DataError, match="finished run of `rgalign train reward`"):
        read_rewards(tmp_path)


def test_the_selection_of_real_rewards_from_the_command_line(judged: Path, tmp_path: Path) -> None:
    out = tmp_path / "v1"
    arguments = ["train", "select", "-o", str(out), "--set", f"rewards={judged}", "--set", "strategy=V1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "strategy: V1" in result.output
    rows = pq.read_table(out / "preferences.parquet").to_pylist()
    rewards: dict[str, list[float]] = {}
    for each in read_rewards(judged).to_pylist():
        rewards.setdefault(each["session_id"], []).append(each["reward"])
    assert [each["session_id"] for each in rows] == list(rewards)
    for each in rows:
        assert each["chosen_reward"] == max(rewards[each["session_id"]])
        assert all(worse < each["chosen_reward"] for worse in each["rejected_reward"])
    latents = np.load(out / "chosen_latents.npy")
    same = [left["chosen"] == right["chosen"] for left in rows[:20] for right in rows[:20]]
    assert [bool((left == right).all()) for left in latents[:20] for right in latents[:20]] == same
