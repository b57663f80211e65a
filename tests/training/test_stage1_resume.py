"""A run killed at any point and started again ends with the same weights, to the bit."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from rgalign.config import parse_config
from rgalign.errors import DataError
from rgalign.training import trainer_state
from rgalign.training.stage1 import Stage1Config, train_stage1

Values = Callable[..., dict[str, Any]]
STEPS_PER_EPOCH = 10  # shards of 128, 128 and 44 sessions in batches of at most 32


class Killed(Exception):
    pass


def kill_at(*steps: int) -> Callable[[int], None]:
    def on_step(step: int) -> None:
        if step in steps:
            raise Killed

    return on_step


def config_of(values: dict[str, Any]) -> Stage1Config:
    return parse_config(Stage1Config, values, where="test")


def outcome(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "weights.safetensors")


def assert_same(run: Path, reference: Path) -> None:
    expected = outcome(reference)
    assert sum(float(tensor.double().abs().sum()) for tensor in expected.values()) > 0
    found = outcome(run)
    assert found.keys() == expected.keys()
    different = [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]
    assert different == []
    assert (run / "confidence.parquet").read_bytes() == (reference / "confidence.parquet").read_bytes()


@pytest.fixture(scope="module")
def reference(stage1_values: Values, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "run"
    train_stage1(config_of(stage1_values()), path)
    return path


def test_killed_again_and_again(reference: Path, stage1_values: Values, tmp_path: Path):
    """Before the first checkpoint (4), beside one, at an epoch's last step, in the next, in the last; streamed, too."""
    run = tmp_path / "run"
    for count, step in enumerate((2, 4, 7, STEPS_PER_EPOCH, 13, 3 * STEPS_PER_EPOCH)):
        # Streamed or in memory makes no difference, not even from one start to the next.
        config = config_of(stage1_values(memory_rows=0 if count % 2 else 1000))
        with pytest.raises(Killed):
            train_stage1(config, run, on_step=kill_at(step))
        torch.manual_seed(99)
    taken: list[int] = []
    train_stage1(config_of(stage1_values()), run, on_step=taken.append)
    assert taken == [29, 30]  # from the checkpoint at 28
    assert_same(run, reference)
    assert (run / "history.jsonl").read_text().count("\n") == 3


def test_a_subset_under_the_cosine_schedule(stage1_values: Values, tmp_path: Path):
    values = stage1_values(max_train=100, epochs=2, optimiser={"learning_rate": 0.01, "schedule": "cosine"})
    train_stage1(config_of(values), tmp_path / "reference")
    with pytest.raises(Killed):
        train_stage1(config_of(values), tmp_path / "run", on_step=kill_at(7))
    train_stage1(config_of(values), tmp_path / "run")
    assert_same(tmp_path / "run", tmp_path / "reference")


def test_sigkill(reference: Path, stage1_values: Values, tmp_path: Path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stage1_values()))
    script = (
        "import os, pathlib, signal, sys\n"
        "from rgalign.config import load_config\n"
        "from rgalign.training.stage1 import Stage1Config, train_stage1\n"
        "config = load_config(Stage1Config, pathlib.Path(sys.argv[1]))\n"
        "kill = lambda step: step == 23 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "train_stage1(config, pathlib.Path(sys.argv[2]), on_step=kill)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "config.yaml"), str(tmp_path / "run")]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not (tmp_path / "run" / "done").exists()
    taken: list[int] = []
    train_stage1(config_of(stage1_values()), tmp_path / "run", on_step=taken.append)
    assert taken[0] == 21
    assert_same(tmp_path / "run", reference)


@pytest.mark.parametrize("calls", [1, 3, 4])
def test_killed_while_saving(
    calls: int, reference: Path, stage1_values: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Between the tensors and the state that names them: at step 4, at the end of epoch 1, at step 12."""
    remaining = [calls]
    write_json = trainer_state.write_json

    def killed(path: Path, value: Any) -> None:
        remaining[0] -= 1
        if not remaining[0]:
            raise Killed
        write_json(path, value)

    with monkeypatch.context() as patched:
        patched.setattr(trainer_state, "write_json", killed)
        with pytest.raises(Killed):
            train_stage1(config_of(stage1_values()), tmp_path / "run")
    train_stage1(config_of(stage1_values()), tmp_path / "run")
    assert_same(tmp_path / "run", reference)


def test_killed_while_finishing(
    reference: Path, stage1_values: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def killed(*_: object) -> None:
        raise Killed

    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr("rgalign.training.stage1.write_confidence", killed)
        with pytest.raises(Killed):
            train_stage1(config_of(stage1_values()), run)
    assert (run / "model").is_dir()
    assert not (run / "done").exists()

    def fail(step: int) -> None:
        raise AssertionError("trained on")

    train_stage1(config_of(stage1_values()), run, on_step=fail)
    assert_same(run, reference)
    assert not (run / "checkpoint").exists()


def test_a_damaged_checkpoint_is_refused(stage1_values: Values, tmp_path: Path):
    run = tmp_path / "run"
    with pytest.raises(Killed):
        train_stage1(config_of(stage1_values()), run, on_step=kill_at(6))
    [tensors] = (run / "checkpoint").glob("step-*.safetensors")
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"the tensors of state\.json"):
        train_stage1(config_of(stage1_values()), run)
