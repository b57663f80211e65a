"""Builds the pure C++ tests with ThreadSanitizer and runs them through CTest (TSan does not work under CPython)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ for ThreadSanitizer")
def test_the_core_is_right_and_free_of_races(tmp_path: Path) -> None:
    options = ["-DRGALIGN_EXTENSION=OFF", "-DRGALIGN_TESTS=ON", "-DRGALIGN_SANITIZE=thread", "-DCMAKE_CXX_COMPILER=g++"]
    venv = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # cmake and ninja are packages of [dev]
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(tmp_path), *options],
        ["cmake", "--build", str(tmp_path)],
        ["ctest", "--test-dir", str(tmp_path), "--output-on-failure"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": venv})
        assert done.returncode == 0, done.stdout + done.stderr
    assert "100% tests passed" in done.stdout
