"""The batcher in forked children and at the end of a process: typed errors and clean exits, never a hang."""

import os
import signal
import subprocess
import sys

PRELUDE = """
import os, sys, threading, time
import numpy as np
from rgalign.batcher import Batcher, BatcherConfig, BatcherClosed, ForkedError, NotAnswered

busy = threading.Event()

def hung(batch):
    busy.set()
    time.sleep(600)

batcher = Batcher(BatcherConfig(), hung)
running = batcher.submit([1], deadline_ms=500_000)
assert busy.wait(30)
waiting = batcher.submit([2], deadline_ms=500_000)
"""

IN_CHILD = """
child = os.fork()
if child == 0:
    began = time.monotonic()
    for use in (lambda: batcher.submit([3]), running.result, waiting.result):
        try:
            use()
            os._exit(11)
        except ForkedError:
            pass
    if waiting.cancel() or time.monotonic() - began > 5:
        os._exit(12)
    batcher.close()
    own = Batcher(BatcherConfig(), lambda batch: np.ones((batch.num_rows, 1)))
    if own.submit([1], deadline_ms=60_000).result(60)[0] != 1:
        os._exit(13)
    own.close()
    del batcher, own
    sys.exit(0)  # the whole way out, finalizers and all
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
assert not waiting.done()  # in the parent nothing has happened
batcher.close(drain_ms=10)
assert isinstance(waiting.exception(0), BatcherClosed) and isinstance(running.exception(0), BatcherClosed)
print("ok")
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with its child
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def test_a_forked_child_is_told_and_can_make_its_own() -> None:
    done = run(PRELUDE + IN_CHILD)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ok\n"


def test_a_process_ends_while_the_model_hangs_and_answers_who_waits() -> None:
    done = run(
        PRELUDE + "waiting.add_done_callback(lambda future: print(type(future.exception()).__name__, flush=True))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "BatcherClosed\n"
    assert done.stderr == ""


def test_a_process_ends_while_the_model_is_idle() -> None:
    script = """
import numpy as np
from rgalign.batcher import Batcher, BatcherConfig
kept = [Batcher(BatcherConfig(num_workers=4), lambda batch: np.ones((batch.num_rows, 1))) for _ in range(4)]
print(kept[0].submit([1], deadline_ms=60_000).result())
"""
    done = run(script)
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("[1.]\n", "")
