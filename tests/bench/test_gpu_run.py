"""bench/gpu/run.sh: which steps it takes, in which order, with how much time, and what it says of those that failed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / "bench" / "gpu" / "run.sh"
STEPS = ["check", "tune", "engine", "end_to_end", "engine_kernels", "scoring", "table"]

# In Python's place: writes down what it is asked for, and leaves what tune and the C++ part leave.
PYTHON = """#!/bin/sh
case $1 in
  -c) case $2 in *_C*) exit "$NO_EXTENSION" ;; esac; exit 0 ;;
esac
[ "$2" = pybind11 ] && exit 1
name=${2#rgalign.bench.gpu.}
shift 2
echo "$name $*" >>"$CALLS"
[ "$name" = tune ] && echo '{}' >"$OUT/int8_gemm_tiles.json"
[ "$name" = "$BROKEN" ] && exit 3
exit 0
"""


class Ran:
    def __init__(self, done: subprocess.CompletedProcess[str], calls: str) -> None:
        self.status, self.printed = done.returncode, done.stdout
        self.calls = {line.split()[0]: line.split()[1:] for line in calls.splitlines()}

    def seconds(self, step: str) -> int:
        return int(self.calls[step][self.calls[step].index("--seconds") + 1])


def run(tmp_path: Path, *arguments: str, seconds: int = 530, broken: str = "", no_extension: int = 0) -> Ran:
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(PYTHON)
    python.chmod(0o755)
    given = {"PYTHON": python, "OUT": tmp_path / "out", "CALLS": calls, "SECONDS_ALL": seconds}
    environment = os.environ | {name: str(value) for name, value in given.items()}
    environment |= {"BROKEN": broken, "NO_EXTENSION": str(no_extension)}
    done = subprocess.run(["bash", RUN, *arguments], env=environment, capture_output=True, text=True, timeout=60)
    return Ran(done, calls.read_text() if calls.exists() else "")


def test_the_steps(tmp_path: Path) -> None:
    ran = run(tmp_path)
    assert ran.status == 0, ran.printed
    assert list(ran.calls) == STEPS
    out = str(tmp_path / "out")
    for step in ("engine", "end_to_end", "engine_kernels"):
        assert ran.calls[step][:2] == ["--out", out]
        assert ran.calls[step][-2:] == ["--tiles", f"{out}/int8_gemm_tiles.json"]
    assert ran.calls["check"] == []
    assert ran.seconds("engine") == 110


def test_a_dry_run(tmp_path: Path) -> None:
    ran = run(tmp_path, "--dry")
    assert list(ran.calls) == STEPS
    assert all(ran.calls[step][-1] == "--dry" for step in STEPS[:-1])


def test_nothing_is_timed_after_a_wrong_kernel(tmp_path: Path) -> None:
    ran = run(tmp_path, broken="check")
    assert ran.status == 1
    assert list(ran.calls) == ["check"]
    assert "nothing is timed" in ran.printed


@pytest.mark.parametrize("step", ["tune", "engine", "scoring"])
def test_a_broken_step_is_said_and_the_others_run(tmp_path: Path, step: str) -> None:
    ran = run(tmp_path, broken=step)
    assert ran.status == 1
    assert list(ran.calls) == STEPS
    assert ran.printed.splitlines()[-1] == f"not whole: {step}: status 3"


def test_without_the_extension(tmp_path: Path) -> None:
    ran = run(tmp_path, no_extension=1)
    assert list(ran.calls) == [step for step in STEPS if step != "end_to_end"]
    assert "not whole: end_to_end: no C++ part" in ran.printed


def test_little_time(tmp_path: Path) -> None:
    short = run(tmp_path, seconds=80)
    assert 15 <= short.seconds("engine") <= 30
    assert short.status == 0
    (tmp_path / "calls").unlink()
    none = run(tmp_path, seconds=20)
    assert none.calls == {}
    assert none.status == 1
    assert "check: left out" in none.printed
