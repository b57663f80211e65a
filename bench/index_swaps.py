"""Index swaps under concurrent scoring: is every answer that of the generation it names?

    python -m rgalign.bench.index_swaps --swaps 10000        (make soak)

One thread swaps, others score without a pause. Generation g holds vectors drawn from the seed g, so an answer can be
recomputed from the number it states: one that mixes two generations, or names another than it used, is torn. The run is
refused as vacuous unless swaps happened while answers were under way and most generations answered somebody.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import threading
import time
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rgalign.bench.rows import RESULTS, row
from rgalign.errors import DataError
from rgalign.files import write_json
from rgalign.index import IndexHolder, IntentIndex, build_index
from rgalign.kernels.score_reference import Projection, project, project_score_topk_reference, unit
from rgalign.scoring import score

NUM_INTENTS, DIM, HIDDEN, SESSIONS, K = 96, 16, 24, 4, 3
IDS = [f"i{number:03d}" for number in range(NUM_INTENTS)]
TOLERANCE = 2e-6


def vectors_of(generation: int) -> Tensor:
    return unit(torch.randn(NUM_INTENTS, DIM, generator=torch.Generator().manual_seed(generation)))


def index_of(generation: int) -> IntentIndex:
    return build_index(IDS, IDS, vectors_of(generation), {"intent_tower": "soak"})


@dataclass
class Reader:
    """One scoring thread's findings."""

    seed: int
    answers: int = 0
    torn: int = 0
    overtaken: int = 0  # a newer generation was published before the answer was done
    backwards: int = 0  # a generation older than one seen before
    generations: set[int] = field(default_factory=set)

    def run(self, holder: IndexHolder, done: threading.Event) -> None:
        draw = torch.Generator().manual_seed(-self.seed - 1)
        projection = Projection(torch.randn(DIM, HIDDEN, generator=draw))
        last = 0
        while not done.is_set():
            user = torch.randn(SESSIONS, DIM, generator=draw)
            latents = torch.randn(SESSIONS, HIDDEN, generator=draw)
            omega = torch.rand(SESSIONS, generator=draw)
            answer = score(latents, user, projection, holder.current, omega, K)
            self.answers += 1
            self.generations.add(answer.generation)
            self.overtaken += answer.generation < holder.current.generation
            self.backwards += answer.generation < last
            last = answer.generation
            query = project(latents, projection)
            identity = Projection(torch.eye(DIM))
            stated = vectors_of(answer.generation)
            expected = project_score_topk_reference(user, query, identity, omega, stated, None, K)
            wrong = (answer.scores - expected.scores).abs().max() > TOLERANCE
            self.torn += bool(wrong or not torch.equal(answer.rows, expected.rows))


def soak(num_swaps: int, num_readers: int = 2, holder: IndexHolder | None = None) -> dict[str, Any]:
    """Runs it and returns what happened.

    Args:
        holder: of ``index_of(1)``; another than IndexHolder's own is for tests of this test.

    Raises:
        DataError: the run was vacuous: too few answers, generations or overlaps to have found a torn one.
    """
    holder = IndexHolder(index_of(1)) if holder is None else holder
    readers = [Reader(seed) for seed in range(num_readers)]
    done = threading.Event()
    threads = [threading.Thread(target=reader.run, args=(holder, done)) for reader in readers]
    alive: weakref.WeakSet[IntentIndex] = weakref.WeakSet()
    most_alive, early_rss = 0, 0
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    try:
        for generation in range(2, num_swaps + 2):
            answered = sum(reader.answers for reader in readers)
            assert holder.swap(index_of(generation)) == generation
            alive.add(holder.current)
            most_alive = max(most_alive, len(alive))
            # An answer between any two swaps, or a busy machine would let generations pass that nobody saw.
            while sum(reader.answers for reader in readers) == answered and any(t.is_alive() for t in threads):
                time.sleep(0.0002)
            if generation == num_swaps // 4:
                early_rss = _resident_bytes()
    finally:
        done.set()
        for thread in threads:
            thread.join()
    gc.collect()
    summary = {
        "swaps": num_swaps,
        "readers": num_readers,
        "seconds": round(time.perf_counter() - began, 2),
        "answers": sum(reader.answers for reader in readers),
        "generations_answered": len(set[int]().union(*(reader.generations for reader in readers))),
        "overtaken": sum(reader.overtaken for reader in readers),
        "torn": sum(reader.torn for reader in readers),
        "backwards": sum(reader.backwards for reader in readers),
        "most_generations_alive": most_alive,
        "resident_growth_bytes": _resident_bytes() - early_rss,
    }
    enough = min(num_swaps // 8, 1000)
    if summary["answers"] < num_swaps or summary["generations_answered"] < enough or not summary["overtaken"]:
        required = f"{num_swaps} answers, {enough} generations answered, one answer overtaken by a swap"
        raise DataError(where="swap soak", required=required, received=json.dumps(summary))
    return summary


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--swaps", type=int, default=10_000)
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "index_swaps.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    summary = row("index swaps under scoring", **soak(arguments.swaps, arguments.readers))
    write_json(arguments.out, summary)
    print(json.dumps(summary, indent=2))
    if summary["torn"] or summary["backwards"]:
        raise SystemExit("torn answers or generations that went backwards")


if __name__ == "__main__":
    main()
