"""The selection directory: what alignment reads, whole or absent, and refusals with the counts that explain them."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from rgalign.config import dump_config
from rgalign.data.dataset import Dataset
from rgalign.errors import ConfigError, DataError, RewardError
from rgalign.files import read_json, sha256_file, write_json
from rgalign.training.latents import LatentStore
from rgalign.training.reward.reward_config import RewardConfig
from rgalign.training.reward.rewards_file import write_rewards
from rgalign.training.selection import preferences
from rgalign.training.selection.preferences import select
from rgalign.training.selection.select_config import SelectConfig
from rgalign.training.stage1_config import Stage1Config

TEACHERS = ["compass", "gemini", "reasoner"]
Rewards = list[tuple[float, ...]]
MIXED: Rewards = [(1.0, 0.5, 0.2), (0.3, 0.3, 0.9), (0.5, 0.5, 0.5), (0.2, 0.7, 0.1)]


@pytest.fixture
def judged(
    tmp_path: Path, small_dataset: Dataset, stage1_values: Callable[..., dict[str, Any]]
) -> Callable[[Rewards], Path]:
    """A reward run of the first sessions, with these rewards for the three teachers."""

    def write(rewards: Rewards) -> Path:
        out = tmp_path / "reward"
        ids = small_dataset.table("train", ["session_id"]).column(0).to_pylist()
        rows = [(row, place) for row in range(len(rewards)) for place in range(len(TEACHERS))]
        store = LatentStore.create(out / "latents", {"dim": 2})
        store.append(
            [f"{place:016d}".encode() for place in range(len(rows))], np.arange(2 * len(rows)).reshape(-1, 2) * 1.0
        )
        columns = {
            "session_id": [ids[row] for row, _ in rows],
            "row": [row for row, _ in rows],
            "teacher": [TEACHERS[place] for _, place in rows],
            "query": [f"{TEACHERS[place]} asks about {row}" for row, place in rows],
            "reward": [rewards[row][place] for row, place in rows],
            "margin": [0.1 * place for _, place in rows],
            "cosine": [0.5 + 0.1 * place for _, place in rows],
            "fold": [0 for _ in rows],
            "latent": list(range(len(rows))),
        }
        write_rewards(out / "rewards.parquet", columns)
        metrics = {"priority": TEACHERS, "split": "train", "rankers": ["r"], "reasoner": "p", "placement": "slots"}
        write_json(out / "metrics.json", {**metrics, "gate": [], "k": 5})
        write_json(out / "inputs.json", {"candidates": "c", "train": "t", "valid": "v", "latents": {"model": "m"}})
        dump_config(RewardConfig(candidates=tmp_path / "candidates", ranker=tmp_path / "ranker"), out / "config.yaml")
        dump_config(Stage1Config.model_validate(stage1_values()), tmp_path / "ranker" / "config.yaml")
        (out / "done").write_text("")
        return out

    return write


def config(rewards: Path, **changes: Any) -> SelectConfig:
    return SelectConfig.model_validate({"rewards": rewards, **changes})


def test_one_row_a_kept_session(judged: Callable[[Rewards], Path], tmp_path: Path, small_dataset: Dataset) -> None:
    summary = select(config(judged(MIXED)), tmp_path / "out")
    ids = small_dataset.table("train", ["session_id"]).column(0).to_pylist()
    table = pq.read_table(tmp_path / "out" / "preferences.parquet")
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("session_id", "string"),
        ("chosen", "string"),
        ("chosen_reward", "double"),
        ("chosen_teacher", "string"),
        ("rejected", "list<element: string>"),
        ("rejected_reward", "list<element: double>"),
        ("rejected_teacher", "list<element: string>"),
    ]
    rows = table.to_pylist()
    assert [each["session_id"] for each in rows] == [ids[0], ids[2], ids[3]]  # the reasoner won the second
    assert [each["chosen_teacher"] for each in rows] == ["compass", "compass", "gemini"]
    assert rows[0]["chosen"] == "compass asks about 0"
    assert rows[0]["rejected"] == ["gemini asks about 0", "reasoner asks about 0"]
    assert rows[0]["rejected_reward"] == [0.5, 0.2]
    assert rows[1]["rejected"] == []  # all tied: for SFT and contrast, not for preference
    assert rows[2]["rejected_teacher"] == ["compass", "reasoner"]
    assert (summary["sessions"], summary["kept"], summary["retention"], summary["pairs"]) == (4, 3, 0.75, 4)
    assert summary["dropped"] == {"the base teacher won": 1}
    assert summary["ties"]["all_tied"] == 0.25
    assert summary["chosen_by_teacher"] == {"compass": 2, "gemini": 1}
    assert summary["winners"]["reasoner"] == pytest.approx((1 + 1 / 3) / 4)
    assert summary["provenance"]["latents"] == {"model": "m"}


def test_both_of_v4_are_two_rows_of_a_session(
    judged: Callable[[Rewards], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # gemini is nearest; make compass the farthest
    far = lambda left, right: float("compass" in left)  # noqa: E731
    monkeypatch.setattr("rgalign.training.selection.strategies.word_edit_distance", far)
    summary = select(config(judged(MIXED), strategy="V4", v4_keep="both", min_reward=0.3), tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "preferences.parquet").to_pylist()
    pairs = [("compass", "gemini"), ("compass", "gemini"), ("compass", "gemini"), ("gemini",)]  # the last compass: 0.2
    assert [each["chosen_teacher"] for each in rows] == [name for pair in pairs for name in pair]
    rejected = [["reasoner"], ["reasoner"], [], [], [], [], ["compass", "reasoner"]]
    assert [each["rejected_teacher"] for each in rows] == rejected
    assert (summary["kept"], summary["chosen"], summary["retention"]) == (4, 7, 1.0)
    assert summary["chosen_by_teacher"] == {"compass": 3, "gemini": 4}
    latents = np.load(tmp_path / "out" / "chosen_latents.npy", allow_pickle=False)
    assert latents[:, 0].tolist() == [2.0 * place for place in (0, 1, 3, 4, 6, 7, 10)]
    page = (tmp_path / "out" / "examples.md").read_text()
    assert page.count("## Session") == 4
    assert page.count("| chosen |") == 7
    assert page.count("| rejected |") == 3


def test_the_chosen_latents_are_those_of_the_rows(judged: Callable[[Rewards], Path], tmp_path: Path) -> None:
    select(config(judged(MIXED), strategy="V1"), tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "preferences.parquet").to_pylist()
    latents = np.load(tmp_path / "out" / "chosen_latents.npy", allow_pickle=False)
    places = [3 * number + TEACHERS.index(each["chosen_teacher"]) for number, each in enumerate(rows)]
    assert latents.dtype == np.float32
    assert latents.tolist() == [[2.0 * place, 2.0 * place + 1] for place in places]
    recorded = read_json(tmp_path / "out" / "selection.json")["sha256"]
    assert recorded["chosen_latents.npy"] == sha256_file(tmp_path / "out" / "chosen_latents.npy")


def test_examples_can_be_read(judged: Callable[[Rewards], Path], tmp_path: Path, small_dataset: Dataset) -> None:
    select(config(judged(MIXED), examples=2), tmp_path / "out")
    page = (tmp_path / "out" / "examples.md").read_text()
    assert page.count("## Session") == 2
    clicked = small_dataset.table("train", ["clicked"]).column(0)[0].as_py()
    assert f"Clicked: **intent {clicked[0]}" in page
    assert "| chosen | 1.000 | +0.000 | compass | compass asks about 0 |" in page


def test_priority_margin_floor_and_number_of_rejected(judged: Callable[[Rewards], Path], tmp_path: Path) -> None:
    run = judged(MIXED)
    other = select(config(run, strategy="V1", priority=("gemini", "compass", "reasoner")), tmp_path / "a")
    assert other["chosen_by_teacher"] == {"compass": 1, "reasoner": 1, "gemini": 2}
    margin = select(config(run, strategy="V1", tie_break="margin"), tmp_path / "b")
    assert margin["chosen_by_teacher"] == {"compass": 1, "reasoner": 2, "gemini": 1}
    floor = select(config(run, strategy="V1", min_reward=0.6, max_rejected=1), tmp_path / "c")
    assert floor["dropped"] == {"a reward below min_reward": 1}
    rejected = pq.read_table(tmp_path / "c" / "preferences.parquet").column("rejected").to_pylist()
    assert [len(each) for each in rejected] == [1, 1, 1]


def test_a_selection_replaces_a_selection_and_nothing_else(judged: Callable[[Rewards], Path], tmp_path: Path) -> None:
    run = judged(MIXED)
    select(config(run, strategy="V1"), tmp_path / "out")
    assert select(config(run, strategy="V2"), tmp_path / "out")["kept"] == 3
    assert len(pq.read_table(tmp_path / "out" / "preferences.parquet")) == 3
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="a former selection to replace"):
        select(config(run), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_all_tied_rewards_are_refused_unless_the_margin_decides(
    judged: Callable[[Rewards], Path], tmp_path: Path
) -> None:
    run = judged([(0.5, 0.5, 0.5), (0.0, 0.0, 0.0)])
    with pytest.raises(RewardError, match="tie_break: margin.*received all candidates tied in each of 2 sessions"):
        select(config(run), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert select(config(run, strategy="V1", tie_break="margin"), tmp_path / "out")["kept"] == 2


@pytest.mark.parametrize(
    ("strategy", "rewards", "message"),
    [
        ("V2", [(0.1, 0.2, 0.9)] * 3, "strategy V2 to keep a session; received 3 x the base teacher won"),
        ("V1", [(0.1, 0.2, 0.3)], "strategy V1 to keep a session; received 1 x a reward below min_reward"),
    ],
)
def test_an_empty_selection_says_why_and_writes_nothing(
    judged: Callable[[Rewards], Path], tmp_path: Path, strategy: str, rewards: Rewards, message: str
) -> None:
    with pytest.raises(RewardError, match=message):
        select(config(judged(rewards), strategy=strategy, min_reward=0.5), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_intersection_says_why(
    judged: Callable[[Rewards], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # gemini is nearest; make compass the farthest
    far = lambda left, right: float("compass" in left)  # noqa: E731
    monkeypatch.setattr("rgalign.training.selection.strategies.word_edit_distance", far)
    with pytest.raises(RewardError, match="V3 to keep a session; received 4 x no candidate is both farthest"):
        select(config(judged(MIXED), strategy="V3"), tmp_path / "out")


def test_a_full_disk_leaves_the_former_selection(
    judged: Callable[[Rewards], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = judged(MIXED)
    select(config(run, strategy="V1"), tmp_path / "out")
    before = sha256_file(tmp_path / "out" / "preferences.parquet")

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(preferences.np, "save", full)
    with pytest.raises(DataError, match="room to write"):
        select(config(run, strategy="V2"), tmp_path / "out")
    assert sha256_file(tmp_path / "out" / "preferences.parquet") == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_teachers_that_there_are_not(judged: Callable[[Rewards], Path], tmp_path: Path) -> None:
    run = judged(MIXED)
    with pytest.raises(
        ConfigError, match="a teacher named .*; received V2 with the teachers compass, gemini, reasoner"
    ):
        select(config(run, base="qwen"), tmp_path / "out")
    with pytest.raises(ConfigError, match="priority: required each of compass, gemini, reasoner once"):
        select(config(run, priority=("compass", "gemini")), tmp_path / "out")
    (run / "done").unlink()
    with pytest.raises(DataError, match="received an unfinished run"):
        select(config(run), tmp_path / "out")
