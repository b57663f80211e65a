"""Load over HTTP from one or several processes, each with its own event loop and every n-th arrival.

    python -m rgalign.bench.loadgen_processes      one of them; spoken to over its standard input and output

A generating process is asked what share of a core it took and how late it was: near a whole core it sends no faster,
and the answers' times are its own. Then there are to be more of them.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from rgalign.bench.loadgen_ledger import Ledger, from_json, merged, to_json
from rgalign.bench.loadgen_targets import Context, HttpTarget, open_loop

LEAD_S = 0.1  # from the word to begin to the run's beginning
MODULE = "rgalign.bench.loadgen_processes"


class Generators:
    """``processes`` of them, warmed up; ``run`` lets them send.

    Args:
        connections: opened, and used once, by all of them together before the run.
        arrivals: seconds from the run's beginning.
    """

    def __init__(
        self,
        target: HttpTarget,
        contexts: Sequence[Context],
        arrivals: Sequence[float],
        *,
        processes: int = 1,
        connections: int = 16,
    ) -> None:
        self._open = ExitStack()
        self._workers: list[subprocess.Popen[str]] = []
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        for first in range(processes):
            worker = self._open.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", MODULE],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=environment,
                )
            )
            self._open.callback(worker.kill)
            self._workers.append(worker)
            told = {
                "host": target.host,
                "port": target.port,
                **target.asked,
                "contexts": list(contexts),
                "arrivals": [(number, arrivals[number]) for number in range(first, len(arrivals), processes)],
                "connections": -(-connections // processes),
            }
            _say(worker, json.dumps(told))
        for worker in self._workers:
            _hear(worker)  # it is warm

    def run(self) -> Ledger:
        began = time.perf_counter() + LEAD_S
        for worker in self._workers:
            _say(worker, repr(began))
        return merged([from_json(_hear(worker)) for worker in self._workers])

    def __enter__(self) -> Generators:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


def _say(worker: subprocess.Popen[str], line: str) -> None:
    assert worker.stdin is not None
    worker.stdin.write(line + "\n")
    worker.stdin.flush()


def _hear(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError(f"a generating process ended with code {worker.wait()}; its error is above")
    return line


async def _generate(told: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    target = HttpTarget(told["host"], told["port"], told["k"], told["deadline_ms"])
    await target.warm(told["contexts"], told["connections"])
    print("warm", flush=True)
    began = float(await loop.run_in_executor(None, sys.stdin.readline))
    arrivals = [(int(number), float(at)) for number, at in told["arrivals"]]
    ledger = await open_loop(target.ask, told["contexts"], arrivals, began=began)
    print(to_json(ledger), flush=True)
    await target.close()


if __name__ == "__main__":
    asyncio.run(_generate(json.loads(sys.stdin.readline())))
