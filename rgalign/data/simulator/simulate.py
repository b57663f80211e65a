"""simulate: config -> a dataset directory with its truth, whole or absent, the same for any number of workers.

Shards are independent: each has its own random stream, and the world they share follows from the config. A worker
holds one shard in memory (about 400 MB at 65,536 sessions).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from rgalign.data.dataset import DatasetWriter
from rgalign.data.simulator.clicks import Popularity
from rgalign.data.simulator.config import SimulatorConfig
from rgalign.data.simulator.features import build_schema
from rgalign.data.simulator.shard import Counts, write_shard
from rgalign.data.simulator.when import SPLITS, START, Part, plan
from rgalign.data.simulator.world import World
from rgalign.files import write_json

REPORT = "simulator.json"
WORTH_A_WORKER = 50_000
_world: World | None = None  # of a worker process


def simulate(config: SimulatorConfig, out: Path, workers: int | None = None, progress: bool = True) -> dict[str, Any]:
    """Writes a dataset directory with ``truth/`` and ``simulator.json``; returns what that file holds, and the rate.

    Args:
        out: must not exist, or be an empty directory.
        workers: processes; None: one a core, for small datasets fewer.
        progress: a bar on standard error.

    Raises:
        DataError: something is at ``out``.
    """
    began = time.perf_counter()
    parts = plan(config)
    cores = len(os.sched_getaffinity(0))
    # A process takes a while to start, which small datasets do not repay.
    workers = min(workers or min(cores, -(-config.num_sessions // WORTH_A_WORKER)), len(parts))
    world = World(config)
    with (
        DatasetWriter(out, build_schema(), world.base.catalog) as writer,
        _bar(config.num_sessions, progress) as advance,
    ):
        directory = writer._directory  # shards are written where the writer will publish them from
        if workers == 1:
            counts = [write_shard(world, part, directory, advance) for part in parts]
        else:
            counts = _in_parallel(world, parts, directory, workers, advance)
        report = _report(world, parts, counts)
        write_json(directory / REPORT, report)
    seconds = time.perf_counter() - began
    return {**report, "seconds": seconds, "workers": workers, "sessions_per_second": config.num_sessions / seconds}


def _in_parallel(
    world: World, parts: list[Part], directory: Path, workers: int, advance: Callable[[int], None]
) -> list[Counts]:
    counts: dict[Part, Counts] = {}
    # spawn: a fork of a process in which torch has run threads may hang.
    with ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=_begin, initargs=(world.config, world.popularity)
    ) as pool:
        pending = {pool.submit(_write, part, directory): part for part in parts}
        for done in as_completed(pending):
            part = pending[done]
            counts[part] = done.result()
            advance(part.last - part.first)
    return [counts[part] for part in parts]


def _begin(config: SimulatorConfig, popularity: Popularity) -> None:
    global _world
    _world = World(config, popularity)


def _write(part: Part, directory: Path) -> Counts:
    assert _world is not None
    return write_shard(_world, part, directory)


def _report(world: World, parts: list[Part], counts: list[Counts]) -> dict[str, Any]:
    splits: dict[str, Any] = {}
    for split in SPLITS:
        here = [count for part, count in zip(parts, counts, strict=True) if part.split == split]
        total = {key: sum(count[key] for count in here) for key in here[0]}
        sessions = total.pop("sessions")
        splits[split] = {"sessions": sessions, **{key: round(value / sessions, 6) for key, value in total.items()}}
    cold = [intent for intent, is_cold in zip(world.base.catalog.ids, world.base.cold, strict=True) if is_cold]
    return {
        "config": world.config.model_dump(mode="json"),
        "start": str(START),
        "num_intents": len(world.base.catalog),
        "cold_intents": cold,
        "splits": splits,  # a session's mean of each
    }


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f} sessions/s")


@contextmanager
def _bar(total: int, progress: bool) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn("simulate"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task("simulate", total=total)
        yield lambda rows: bar.update(task, advance=rows)
