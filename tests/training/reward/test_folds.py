"""Cross-fitting: the folds are disjoint by user, the same for ever, and no ranker judges what it was trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rgalign.data.dataset import Dataset
from rgalign.errors import DataError, ProvenanceError
from rgalign.training.latents import LatentStore
from rgalign.training.reward.folds import FoldBy, RewardFolds, fold_column, fold_of
from rgalign.training.semantic import require_untrained, write_semantic


def columns(dataset: Dataset, split: str, name: str) -> list[str]:
    values: list[str] = dataset.table(split, [name]).column(0).to_pylist()
    return values


def test_a_users_fold_depends_on_nothing_else() -> None:
    users = [f"u{number}" for number in range(2000)]
    folds = fold_of(users, 5, seed=1)
    assert np.bincount(folds).min() > 340
    assert np.array_equal(fold_of(users[::-1], 5, seed=1), folds[::-1])
    assert fold_of(["u7"], 5, seed=1)[0] == folds[7]
    assert not np.array_equal(fold_of(users, 5, seed=2), folds)


@pytest.mark.parametrize("by", ["user", "session"])
def test_no_ranker_is_trained_on_what_it_judges(
    by: FoldBy, echo: Any, make_stage1: Callable[..., Any], tmp_path: Path
) -> None:
    folds = RewardFolds(make_stage1(echo.dataset, echo.latents), tmp_path, folds=3, by=by, seed=0)
    ids, users = columns(echo.dataset, "train", "session_id"), columns(echo.dataset, "train", "user_id")
    seen_by: dict[str, int] = dict.fromkeys(ids, 0)
    for fold in range(3):
        trained = columns(folds.data(fold), "train", "session_id")
        judged = {ids[row] for row in np.flatnonzero(folds.train == fold)}
        assert judged
        assert judged.isdisjoint(trained)
        assert judged.union(trained) == set(ids)
        if by == "user":
            judged_users = {users[row] for row in np.flatnonzero(folds.train == fold)}
            assert judged_users.isdisjoint(columns(folds.data(fold), "train", "user_id"))
        for each in trained:
            seen_by[each] += 1
    assert set(seen_by.values()) == {2}


def test_a_sessions_click_changes_no_ranker_that_judges_it(
    make_echo: Callable[..., Dataset], echo: Any, make_stage1: Callable[..., Any], tmp_path: Path
) -> None:
    row = 17
    click = "i0" if echo.dataset.table("train", ["clicked"]).column(0)[row].as_py() == ["i5"] else "i5"
    changed = make_echo(tmp_path / "data", change={row: click})
    store = LatentStore.open(echo.latents)
    store.write_map(changed, "train", store.rows(echo.dataset, "train"))
    ours = RewardFolds(make_stage1(echo.dataset, echo.latents), tmp_path / "a", folds=3, by="user", seed=0)
    theirs = RewardFolds(make_stage1(changed, echo.latents), tmp_path / "b", folds=3, by="user", seed=0)
    judge = int(ours.train[row])
    same = [ours.data(fold).fingerprint("train") == theirs.data(fold).fingerprint("train") for fold in range(3)]
    assert same == [fold == judge for fold in range(3)]


def test_a_trained_session_is_refused(echo: Any, make_stage1: Callable[..., Any], tmp_path: Path) -> None:
    folds = RewardFolds(make_stage1(echo.dataset, echo.latents), tmp_path, folds=2, by="user", seed=0)
    ids = columns(echo.dataset, "train", "session_id")
    own = [ids[row] for row in np.flatnonzero(folds.train == 0)]
    other = ids[int(np.flatnonzero(folds.train == 1)[0])]
    folds.require_unseen(0, own)
    with pytest.raises(ProvenanceError, match=f"clicks the ranker has not seen; received 1 of .*{other}"):
        folds.require_unseen(0, [*own, other])


def test_a_fold_written_without_its_maps_is_completed(
    make_echo: Callable[..., Dataset], echo: Any, make_stage1: Callable[..., Any], tmp_path: Path
) -> None:
    folds = RewardFolds(make_stage1(echo.dataset, echo.latents), tmp_path, folds=2, by="user", seed=4)
    data = folds.data(0)
    maps = set((echo.latents / "maps").iterdir())
    folds.store._map_file(data, "train").unlink()
    again = RewardFolds(make_stage1(echo.dataset, echo.latents), tmp_path, folds=2, by="user", seed=4)
    again.data(0)
    assert set((echo.latents / "maps").iterdir()) == maps
    kept = np.flatnonzero(again.train != 0)
    rows = again.store.rows(again.data(0), "train")
    assert np.array_equal(rows, again.store.rows(echo.dataset, "train")[kept])


def test_sessions_without_a_user_are_users_of_their_own(tmp_path: Path, make_echo: Callable[..., Dataset]) -> None:
    dataset = make_echo(tmp_path / "data", num_train=40, num_valid=4)
    folds = fold_column(dataset, "train", "session", 4, 0)
    assert np.array_equal(folds, fold_of(columns(dataset, "train", "session_id"), 4, 0))
    assert len(set(folds.tolist())) == 4


def test_one_user_cannot_be_folded(
    echo: Any, make_stage1: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds = RewardFolds(make_stage1(echo.dataset, echo.latents), tmp_path, folds=2, by="user", seed=0)
    folds.train = np.zeros_like(folds.train)
    with pytest.raises(DataError, match="training sessions in two folds or more; received all 240"):
        folds.data(0)


def test_text_vectors_that_learned_from_all_clicks_are_refused(echo: Any, tmp_path: Path) -> None:
    matrix = torch.zeros(len(echo.dataset.catalog), 4)
    for name, inputs in (("frozen", {}), ("trained", {"train": echo.dataset.fingerprint("train")})):
        write_semantic(tmp_path / name, matrix, echo.dataset.catalog, inputs)
    require_untrained(None)
    require_untrained(tmp_path / "frozen")
    with pytest.raises(ProvenanceError, match=r"learned from no click .*vectors trained on clicks"):
        require_untrained(tmp_path / "trained")
