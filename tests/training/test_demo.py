"""The demo's fair baseline, and what it does in a directory that holds another demo."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from rgalign.data.dataset import Dataset
from rgalign.data.simulator import SimulatorConfig, simulate
from rgalign.errors import ConfigError
from rgalign.training.demo import demo_dataset, demo_loop
from rgalign.training.embed import EmbedConfig
from rgalign.training.loop.loop_config import NOWHERE


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo's directory whose sessions are simulated and sampled."""
    path = tmp_path_factory.mktemp("demo")
    for name in ("all", "data"):
        simulate(SimulatorConfig(num_sessions=100, num_intents=200, num_cold_intents=0), path / name, progress=False)
    return path


def test_a_finished_demo_s_sessions_are_kept_and_another_s_are_not_taken_for_them(out: Path) -> None:
    console = Console(file=io.StringIO())
    assert demo_dataset(out, None, EmbedConfig(), 1.0, console).path == out / "data"
    with pytest.raises(ConfigError, match="boston311 sessions .*; received sessions of simulated-shop"):
        demo_dataset(out, Path("boston.csv"), EmbedConfig(), 1.0, console)


def test_all_rankers_learn_by_one_loss(out: Path) -> None:
    loop = demo_loop(Dataset.open(out / "data"), out, EmbedConfig(titles=True))
    baseline, first = loop.baseline_config(seed=0).model.loss, loop.stage1_config(NOWHERE, seed=0).model.loss
    assert not baseline.mask_unseen
    assert baseline == first.model_copy(update={"part_weight": 0.0, "title_weight": 0.0})
