"""Two processes (gloo, CPU) train what one process trains, and go on from a kill to the same bits."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from rgalign.config import parse_config
from rgalign.data.dataset import Dataset
from rgalign.errors import ProvenanceError
from rgalign.training.latents import LatentStore
from rgalign.training.stage1 import Stage1Config, load_ranker, score_split, train_stage1

SCRIPT = """
import pathlib, sys
from rgalign.config import load_config
from rgalign.training.stage1 import Stage1Config, train_stage1

path = pathlib.Path(sys.argv[1])
plain, dropout = (load_config(Stage1Config, path / f"{name}.yaml") for name in ("plain", "dropout"))

def kill(step):
    if step == 7:
        raise KeyboardInterrupt

train_stage1(plain, path / "two")
train_stage1(dropout, path / "undisturbed")
for name in ("killed", "half"):
    try:
        train_stage1(dropout, path / name, on_step=kill)
    except KeyboardInterrupt:
        pass
train_stage1(dropout, path / "killed")
"""


@pytest.mark.slow
def test_two_processes(
    stage1_values: Callable[..., dict[str, Any]], small_dataset: Dataset, small_latents: LatentStore, tmp_path: Path
):
    # Dropout differs between processes, and confidence weights have mean 1 within each one's batch.
    model = {**stage1_values()["model"], "dropout": 0.0, "query_dropout": 0.0, "confidence": None}
    model["intent"] = {**model["intent"], "id_dropout": 0.0}
    shared = {"device": "cpu", "batch_size": 16, "epochs": 2}
    plain, dropout = stage1_values(model=model, **shared), stage1_values(**shared)
    for name, values in (("plain", plain), ("dropout", dropout)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
    launch(tmp_path)
    one = parse_config(Stage1Config, {**plain, "batch_size": 32}, where="test")
    train_stage1(one, tmp_path / "one")

    history = [history_of(tmp_path / name) for name in ("one", "two")]
    for key in ("train_loss", "steps", "lr"):
        np.testing.assert_allclose([r[key] for r in history[1]], [r[key] for r in history[0]], rtol=1e-5)
    assert [r["valid"]["ndcg@3"] for r in history[1]] == pytest.approx([r["valid"]["ndcg@3"] for r in history[0]])
    # Scores, not weights: a bias of attention keys has gradient zero, of which Adam makes steps of rounding noise.
    ours, theirs = (
        score_split(load_ranker(tmp_path / name), small_dataset, "test", small_latents) for name in ("two", "one")
    )
    np.testing.assert_allclose(ours.total, theirs.total, atol=1e-4)
    assert json.loads((tmp_path / "two" / "metrics.json").read_text())["num_processes"] == 2

    killed, undisturbed = weights_of(tmp_path / "killed"), weights_of(tmp_path / "undisturbed")
    for name, tensor in undisturbed.items():
        np.testing.assert_array_equal(killed[name], tensor, err_msg=name)
    with pytest.raises(ProvenanceError, match="required 2 processes, as when the run began; received 1"):
        train_stage1(parse_config(Stage1Config, dropout, where="test"), tmp_path / "half")


def launch(path: Path) -> None:
    """As torchrun does, without its supervisor."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", SCRIPT, str(path)]
    processes = [
        subprocess.Popen(
            command,
            env={**environment, "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors.decode()
    finally:
        for process in processes:
            process.kill()


def history_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def weights_of(run: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {name: tensor.numpy() for name, tensor in load_file(run / "model" / "weights.safetensors").items()}
