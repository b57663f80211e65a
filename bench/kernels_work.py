"""What this machine can do, and exact top-k of dense scores beside torch and NumPy.

    python -m rgalign.bench.kernels_work [--sizes 5000 100000] [--batches 1 32]    rows: bench/results/kernels.jsonl

``machine peaks``  10^9 bytes a second copied and 10^9 operations a second multiplied, for each number of threads: the
                   roof over the report's roofline
``topk``           [B, N] scores to the k best, every variant checked against the definition first
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from rgalign.bench.engine_work import measure_peaks
from rgalign.bench.rows import RESULTS, append, row, spread
from rgalign.bench.scoring import Machine, timed
from rgalign.topk import topk, topk_reference

Best = Callable[[], NDArray[np.int64]]

console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", type=int, nargs="+", default=(5_000, 100_000), help="N")
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 32), help="B")
    parser.add_argument("--k", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of timing a cell")
    parser.add_argument("--out", default="kernels.jsonl", help=f"file in {RESULTS}, or an absolute path")
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    rows = [peaks_row(threads) for threads in sorted({1, cores})]
    for size in arguments.sizes:
        for batch in arguments.batches:
            rows += topk_rows(size, batch, arguments.k, cores, arguments.seconds)
    for each in rows:
        console.print(each["benchmark"], each.get("variant", ""), each.get("N", ""), each.get("B", ""), each["threads"],
                      each.get("call_us", each.get("copy_gb_per_s")))  # fmt: skip
    console.print(f"appended to {append(arguments.out, rows)}")


def peaks_row(threads: int) -> dict[str, Any]:
    peaks, machine = measure_peaks(threads), Machine.measure(threads)
    return row(
        "machine peaks",
        threads=threads,
        gflop_per_s=peaks.described(),
        copy_gb_per_s=round(machine.copy_gb_per_s, 2),
    )


def topk_rows(size: int, batch: int, k: int, threads: int, seconds: float) -> list[dict[str, Any]]:
    scores = np.random.default_rng(0).standard_normal((batch, size), dtype=np.float32)
    torch.set_num_threads(threads)
    calls = topk_variants(scores, k)
    require_best(calls, topk_reference(scores, k).rows)
    timings = timed(calls, seconds)
    return [
        row(
            "topk", variant=name, N=size, B=batch, k=k, threads=threads, calls=len(each),
            call_us=spread([one * 1e6 for one in each], 2),
        )
        for name, each in timings.items()
    ]  # fmt: skip


def topk_variants(scores: NDArray[np.float32], k: int) -> dict[str, Best]:
    tensor = torch.from_numpy(scores)

    def with_numpy() -> NDArray[np.int64]:
        best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        return np.take_along_axis(best, np.argsort(-np.take_along_axis(scores, best, 1), axis=1), 1)

    def with_torch() -> NDArray[np.int64]:
        found: NDArray[np.int64] = tensor.topk(k).indices.numpy()
        return found

    return {"rgalign": lambda: topk(scores, k).rows, "torch": with_torch, "numpy": with_numpy}


def require_best(calls: dict[str, Best], expected: NDArray[np.int64]) -> None:
    """Raises AssertionError for a variant with other winners than the definition: it must not be timed."""
    for name, call in calls.items():
        if not np.array_equal(call(), expected):
            raise AssertionError(f"{name} found other winners than the definition")


if __name__ == "__main__":
    main()
