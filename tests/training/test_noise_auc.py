"""The confidence weights against the simulator's hidden noise flag."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rgalign.data.dataset import Dataset
from rgalign.data.simulator import SimulatorConfig, read_truth, simulate
from rgalign.errors import DataError
from rgalign.training.click_confidence import noise_auc
from rgalign.training.run_directory import CONFIDENCE


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("simulated") / "data"
    simulate(SimulatorConfig(num_sessions=400, num_intents=400), path)
    return Dataset.open(path)


def weighed(directory: Path, ids: list[str], weights: np.ndarray) -> Path:
    directory.mkdir()
    pq.write_table(pa.table({"session_id": ids, "weight": pa.array(weights, pa.float32())}), directory / CONFIDENCE)
    return directory


def test_low_weights_on_noise_are_found_in_any_order(simulated: Dataset, tmp_path: Path):
    truth = read_truth(simulated.path, "train")
    order = np.random.default_rng(0).permutation(len(truth))
    ids, noise = truth.session_ids[order].tolist(), truth.noise[order]
    assert 0 < noise.sum() < len(noise)
    assert noise_auc(weighed(tmp_path / "perfect", ids, np.where(noise, 0.5, 1.2)), simulated) == 1
    assert noise_auc(weighed(tmp_path / "inverse", ids, np.where(noise, 1.2, 0.5)), simulated) == 0
    assert noise_auc(weighed(tmp_path / "blind", ids, np.ones(len(ids))), simulated) == 0.5


def test_no_weights_no_value(simulated: Dataset, tmp_path: Path):
    assert noise_auc(tmp_path, simulated) is None


def test_weights_of_other_sessions_are_refused(simulated: Dataset, tmp_path: Path):
    with pytest.raises(DataError, match="no 'elsewhere'"):
        noise_auc(weighed(tmp_path / "run", ["elsewhere"], np.ones(1)), simulated)
