"""ZeRO-3 over two CPU processes (gloo) takes the three stages and ends where one process ends."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rgalign.config import dump_config
from rgalign.files import read_json
from rgalign.training.alignment.align import align
from rgalign.training.alignment.alignment_config import AlignmentConfig

Make = Callable[..., AlignmentConfig]
TOLERANCE = 1e-5  # 1.2e-7 where measured; AdamW divides a gradient by its own size, so rounding may show more


def launch(place: Path, objective: str) -> None:
    """The command under a launcher, two processes; deepspeed compiles one small extension the first time."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    # What `accelerate launch` starts on GPUs; on CPUs it starts one process.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    command = ["-m", "rgalign.cli", "train", objective, "--config", str(place / f"{objective}.yaml")]
    done = subprocess.run(
        [*launcher, *command, "-o", str(place / objective)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


@pytest.mark.slow
def test_two_processes_with_zero_3_equal_one(make_config: Make, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="needs the extra `zero`: pip install --no-build-isolation '.[zero]'")
    # Without a bank a session's negatives are those of its step, gathered from both processes.
    shared = {"tuning": "full", "contrast": {"bank": 0}, "learning_rate": 1e-4}
    shared |= {"micro_batch": 2, "checkpoint_steps": 100}
    one, two = tmp_path / "one", tmp_path / "two"
    two.mkdir()
    for place, stage in ((one, 0), (two, 3)):
        start = {"sft": None, "contrast": place / "sft", "dpo": place / "sft"}
        for objective, init in start.items():
            config = make_config(**shared, zero_stage=stage, init=init)
            if stage:
                dump_config(config, place / f"{objective}.yaml")
                launch(place, objective)
            else:
                align(objective, config, place / objective)
    for objective in ("sft", "contrast", "dpo"):
        expected, got = (load_file(place / objective / "model" / "model.safetensors") for place in (one, two))
        metrics = [read_json(place / objective / "metrics.json") for place in (one, two)]
        assert [each["num_processes"] for each in metrics] == [1, 2]
        assert metrics[0]["steps"] == metrics[1]["steps"]
        assert expected.keys() == got.keys()
        for name, weight in expected.items():
            torch.testing.assert_close(got[name], weight, atol=TOLERANCE, rtol=0)
        before = {key: metrics[0]["before"][key] for key in ("eval_loss", "eval_cos")}
        assert {key: metrics[1]["before"][key] for key in before} == pytest.approx(before, abs=2e-3)
    moved = load_file(one / "contrast" / "model" / "model.safetensors")["model.norm.weight"] - 1
    assert moved.abs().max() > 10 * TOLERANCE  # the comparison above is not of untouched weights
