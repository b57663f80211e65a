"""A process may end while daemon threads are in the extension: it exits as it was told to, and says nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import threading, time
import numpy as np
from rgalign import _C

scores = np.random.default_rng(0).normal(size=(4, 60_000)).astype(np.float32)
began = threading.Barrier(7)

def rank():
    began.wait()
    while True:
        _C.topk(scores, 3, None, 1)

for _ in range(6):
    threading.Thread(target=rank, daemon=True).start()
began.wait()
time.sleep(0.05)
raise SystemExit(3)
"""


def test_daemon_threads_in_the_extension_do_not_abort_the_process() -> None:
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (3, "")


def test_the_gil_is_given_up_in_one_way() -> None:
    """pybind11's own aborts a process that ends meanwhile: csrc/python/without_gil.h."""
    bindings = sorted((Path(__file__).parents[1] / "csrc" / "python").glob("*.cpp"))
    assert bindings
    assert [path.name for path in bindings if "gil_scoped_release" in path.read_text(encoding="utf-8")] == []
