"""A run killed at any step and started again ends with the very weights of an undisturbed one.

`make soak` kills at ten random points instead of the few here.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rgalign.bench.soak import size
from rgalign.files import sha256_file
from rgalign.training.alignment.align import align
from rgalign.training.alignment.alignment_config import AlignmentConfig, Objective
from rgalign.training.alignment.whole_checkpoints import WHOLE, newest_whole, remove_torn

Make = Callable[..., AlignmentConfig]
STEPS = 8
KILLS = size(0, 10)


def killed_at(step: int) -> Callable[[int], None]:
    def kill(now: int) -> None:
        if now == step:
            raise KeyboardInterrupt

    return kill


def weights(run: Path) -> str:
    return sha256_file(run / "model" / "model.safetensors")


def points(objective: str) -> list[int]:
    if KILLS:
        return random.Random(objective).choices(range(1, STEPS), k=KILLS)
    return {"sft": [5], "contrast": [3], "dpo": [4]}[objective]


@pytest.mark.parametrize(
    ("objective", "changes"),
    [
        ("sft", {"tuning": "full", "neftune_alpha": 5.0}),  # noise: the random state must come back too
        ("contrast", {}),
        ("dpo", {"dpo": {"loss": "softmax"}}),
    ],
    ids=["sft", "contrast", "s-dpo"],
)
def test_a_killed_run_ends_with_the_same_weights(
    objective: Objective, changes: dict[str, Any], make_config: Make, tmp_path: Path
) -> None:
    config = make_config(**changes, epochs=2)
    undisturbed = align(objective, config, tmp_path / "whole")
    assert undisturbed["steps"] == STEPS
    for number, step in enumerate(points(objective)):
        run = tmp_path / f"killed{number}"
        with pytest.raises(KeyboardInterrupt):
            align(objective, config, run, on_step=killed_at(step))
        assert not (run / "done").exists()
        resumed: list[int] = []
        metrics = align(objective, config, run, on_step=resumed.append)
        assert resumed[0] == 1 + (step - 1) // 2 * 2  # checkpoints at even steps; the kill comes before its own
        assert weights(run) == weights(tmp_path / "whole")
        assert metrics["after"] == undisturbed["after"]


def test_a_torn_checkpoint_is_removed(tmp_path: Path) -> None:
    for step, whole in ((8, True), (10, True), (12, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").write_bytes(b"")
        if whole:
            (tmp_path / f"checkpoint-{step}" / WHOLE).write_bytes(b"")
    assert newest_whole(tmp_path) == tmp_path / "checkpoint-10"
    remove_torn(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-8", "checkpoint-10"}
    assert newest_whole(tmp_path / "none") is None
