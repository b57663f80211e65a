"""A loop killed (SIGKILL) at random moments and started again ends with the bytes of an undisturbed one.

One kill here; `make soak` asks for ten.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from rgalign.bench.soak import size, summarise
from rgalign.files import read_json, sha256_file
from rgalign.training.loop.status import loop_status

KILLS = size(1, 10)
WEIGHTS = ("model/weights.safetensors", "model/model.safetensors")
POLL_S = 0.01


def begin(values: Callable[..., dict[str, Any]], run: Path) -> subprocess.Popen[bytes]:
    config = run.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(values(alignment={"state_cache": str(run.with_suffix(".states"))})))
    command = [sys.executable, "-m", "rgalign.cli", "train", "all", "--config", str(config), "-o", str(run)]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=os.environ | threads, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def end(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()[-2000:]


def weights(run: Path) -> dict[str, str]:
    files = [path for path in run.rglob("*.safetensors") if str(path).endswith(WEIGHTS)]
    return {str(path.relative_to(run)): sha256_file(path) for path in files}


def kill_during(process: subprocess.Popen[bytes], run: Path, step: str, delay_s: float) -> str:
    """Waits until this process has begun the step, then some time, then kills.

    Returns:
        The first unfinished step when it was killed.
    """
    begun, done, since = run / step / "inputs.json", run / step / "done", time.time()
    while process.poll() is None and not done.is_file():
        if begun.is_file() and begun.stat().st_mtime > since:
            break
        time.sleep(POLL_S)
    time.sleep(delay_s)
    process.kill()
    process.communicate()
    return next((row.name for row in loop_status(run) if row.state != "done"), "none")


def test_killed_at_random_moments_it_ends_with_the_same_bytes(
    loop_values: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    end(begin(loop_values, whole))
    expected = weights(whole)
    assert len(expected) == 8  # six rankers (two of them folds'), two alignments
    steps = {row.name: row.seconds for row in loop_status(whole)}
    rng = random.Random(len(steps))
    killed_in = []
    # Any step is as likely as any other, however short, and none twice; then any moment of it.
    for step in sorted(rng.sample(list(steps), k=KILLS), key=list(steps).index):
        killed_in.append(kill_during(begin(loop_values, killed), killed, step, rng.random() * steps[step]))
    end(begin(loop_values, killed))
    assert weights(killed) == expected
    assert read_json(killed / "evaluate/out/report.json") == read_json(whole / "evaluate/out/report.json")
    assert "none" not in killed_in
    summarise("loop_kills", kills=KILLS, killed_in=killed_in, weights=len(expected), equal=True)
