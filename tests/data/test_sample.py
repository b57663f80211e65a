"""A sample of a dataset: which sessions stay."""

from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc
import pytest

from rgalign.data.dataset import Dataset
from rgalign.data.sample import sample_dataset
from rgalign.data.simulator import SimulatorConfig, read_truth, simulate
from rgalign.errors import DataError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("simulated") / "all"
    simulate(SimulatorConfig(num_sessions=400, num_intents=250), path, progress=False)
    return Dataset.open(path)


def ids(dataset: Dataset, split: str) -> list[str]:
    names: list[str] = dataset.table(split, ["session_id"]).column("session_id").to_pylist()
    return names


def test_the_latest_training_sessions(whole: Dataset, tmp_path: Path) -> None:
    sample = sample_dataset(whole, tmp_path / "sample", {"train": 60, "test": 10}, train="latest")
    assert ids(sample, "train") == ids(whole, "train")[-60:]
    assert ids(sample, "valid") == ids(whole, "valid")
    assert len(ids(sample, "test")) == 10
    assert sample.catalog == whole.catalog


def test_evenly_spaced_sessions_and_their_truth(whole: Dataset, tmp_path: Path) -> None:
    sample = sample_dataset(whole, tmp_path / "sample", {"train": 5, "valid": 10**6})
    names = ids(whole, "train")
    last = len(names) - 1
    assert ids(sample, "train") == [names[round(last * part / 4)] for part in range(5)]
    assert ids(sample, "valid") == ids(whole, "valid")
    for split in ("train", "valid", "test"):
        assert read_truth(sample.path, split).session_ids.tolist() == ids(sample, split)
        first = sample.table(split).slice(0, 1)
        assert first.equals(
            whole.table(split).filter(pc.equal(whole.table(split)["session_id"], first["session_id"][0]))
        )


def test_a_place_that_is_taken_is_refused(whole: Dataset) -> None:
    with pytest.raises(DataError, match="a path that is free"):
        sample_dataset(whole, whole.path, {"train": 5})
