"""SplitScores: checks, and the way to disk and back."""

import numpy as np
import pytest

from rgalign.errors import DataError
from rgalign.training.scores import SplitScores, padded


def scores(**changes):
    total = np.arange(6, dtype=np.float32).reshape(2, 3)
    values = {
        "session_ids": ("a", "b"),
        "total": total,
        "user_part": total * 0.7,
        "query_part": total * 0.3,
        "clicked": np.array([[0, 2], [1, -1]]),
        "candidates": np.array([[0, 2, -1], [2, 1, 0]]),
        "provenance": {"catalog": "abc"},
    }
    return SplitScores(**(values | changes))


@pytest.mark.parametrize("bare", [False, True], ids=["everything", "without parts and candidates"])
def test_save_and_load(tmp_path, bare):
    saved = scores(user_part=None, query_part=None, candidates=None) if bare else scores()
    saved.save(tmp_path / "scores")
    loaded = SplitScores.load(tmp_path / "scores")
    assert isinstance(loaded.total, np.memmap)
    assert loaded.session_ids == saved.session_ids
    assert loaded.provenance == saved.provenance
    for name in ("total", "user_part", "query_part", "clicked", "candidates"):
        before, after = getattr(saved, name), getattr(loaded, name)
        assert (before is None) == (after is None)
        if before is not None:
            np.testing.assert_array_equal(before, after)


def test_saving_over_other_scores_leaves_none_of_them(tmp_path):
    scores().save(tmp_path)
    scores(user_part=None, query_part=None, candidates=None).save(tmp_path)
    assert SplitScores.load(tmp_path).user_part is None


def test_a_save_that_was_cut_short_is_not_read(tmp_path):
    scores().save(tmp_path)
    (tmp_path / "scores.json").unlink()
    with pytest.raises(DataError, match=r"complete scores \(scores.json\); received no such file"):
        SplitScores.load(tmp_path)


def test_a_save_over_older_scores_that_fails_midway_leaves_nothing_to_read(tmp_path, monkeypatch):
    scores().save(tmp_path)

    def full_disk(*arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr("rgalign.training.scores.pq.write_table", full_disk)
    with pytest.raises(OSError, match="no space left"):
        scores(total=np.ones((2, 3), np.float32)).save(tmp_path)
    with pytest.raises(DataError, match=r"complete scores"):
        SplitScores.load(tmp_path)


def test_no_clicks_at_all(tmp_path):
    scores(clicked=np.full((2, 1), -1)).save(tmp_path)
    assert SplitScores.load(tmp_path).clicked.tolist() == [[-1], [-1]]


def test_padded():
    assert padded([[3], [], [1, 2]]).tolist() == [[3, -1], [-1, -1], [1, 2]]
    assert padded([]).shape == (0, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"session_ids": ("a", "a")}, "unique session ids"),
        ({"session_ids": ("a",)}, r"total \[1, N\]"),
        ({"user_part": np.zeros((2, 2))}, "user_part of shape"),
        ({"clicked": np.array([[3], [0]])}, "clicked as catalogue rows below 3"),
        ({"candidates": np.array([[-2], [0]])}, "candidates as catalogue rows"),
        ({"clicked": np.array([[0.0], [1.0]])}, "clicked as integers"),
    ],
)
def test_rejects(changes, message):
    with pytest.raises(DataError, match=message):
        scores(**changes)
