"""How fast the CPU scorer finds the k best intents, beside torch, torch.compile, FAISS, hnswlib and NumPy.

    python -m rgalign.bench.scoring                              the grid; rows appended to bench/results/scoring.jsonl
    python -m rgalign.bench.scoring --sizes 5000 --batches 1 32 --dims 128 --seconds 10
    python -m rgalign.bench.scoring --vectors vectors.npy        a real catalogue instead of random ones
    python -m rgalign.bench.scoring --projection 2560            from latent queries: W e + b, fusion, scores, k best

All variants do the same work with the same threads and are timed in turn, one call each, for about ``--seconds``
a cell; a row holds one variant's median and 20th and 80th percentiles. Before anything is timed, answers are checked
against a float64 ranking. Each row has two shares: of the copy bandwidth (bytes read plus bytes written) and of a large
matrix product's speed, both measured just before, with the same threads. A catalogue that fits the cache may pass 1 of
the first.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.nn.functional import linear, normalize

from rgalign.bench.rows import RESULTS, append, in_turn, row, spread
from rgalign.bench.scoring_peers import Matrix, Rows, Variant, our_threads, variants, versions
from rgalign.cpu_scorer import INSTRUCTION_SETS, CpuIndex, Scan, cpu_score

SIZES = (1_000, 5_000, 20_000, 100_000, 1_000_000)
BATCHES = (1, 4, 32, 128)
DIMS = (64, 128, 256)
LARGEST_VALUES = 128_000_000  # a cell of the grid: 512 MB in float32
TOLERANCE = 2e-6  # two float32 scores of unit vectors closer than this may change places
WARMUP = 3
CHECKED_SESSIONS = 4
COPY_BYTES = 1 << 28
PEAK_SIDE = 1_536
OMEGA = 0.7

console = Console()


@dataclass(frozen=True)
class Machine:
    """What this machine can do at this moment, with these threads."""

    copy_gb_per_s: float
    matmul_gflop_per_s: float

    @classmethod
    def measure(cls, threads: int) -> Machine:
        torch.set_num_threads(threads)
        source = torch.ones(COPY_BYTES // 4)
        target = torch.empty_like(source)
        square = torch.ones(PEAK_SIDE, PEAK_SIDE)
        seconds = in_turn({"copy": lambda: target.copy_(source), "matmul": lambda: square @ square}, repeats=7)
        copy, matmul = (float(np.median(seconds[name])) for name in ("copy", "matmul"))
        return cls(2 * COPY_BYTES / copy / 1e9, 2 * PEAK_SIDE**3 / matmul / 1e9)


@dataclass(frozen=True)
class Cell:
    """One place of the grid."""

    num_rows: int
    dim: int
    batch: int
    k: int
    threads: int
    seconds: float
    catalogue: str
    latent_dim: int | None = None

    def described(self) -> dict[str, Any]:
        return {"N": self.num_rows, "D": self.dim, "B": self.batch, "k": self.k, "threads": self.threads,
                "catalogue": self.catalogue, "latent_dim": self.latent_dim}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="N")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="B")
    parser.add_argument("--dims", type=int, nargs="+", default=DIMS, help="D")
    parser.add_argument("--k", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing a cell")
    parser.add_argument("--skip", nargs="*", default=(), choices=("faiss", "hnswlib", "torch.compile"))
    parser.add_argument("--vectors", type=Path, help="a .npy file [N, D] to use as the catalogue")
    parser.add_argument("--projection", type=int, metavar="H", help="start from latent queries of this size")
    parser.add_argument("--out", default="scoring.jsonl", help=f"file in {RESULTS}, or an absolute path")
    arguments = parser.parse_args()
    for catalogue, name in catalogues(arguments):
        for batch in arguments.batches:
            size, dim = catalogue.shape
            cell = Cell(size, dim, batch, arguments.k, arguments.threads, arguments.seconds, name,
                        arguments.projection)  # fmt: skip
            measure = measure_retrieval if cell.latent_dim is None else measure_fused
            rows = measure(cell, catalogue, tuple(arguments.skip))
            path = append(arguments.out, rows)
            for each in rows:
                console.print(f"N {cell.num_rows} D {cell.dim} B {cell.batch} {each['variant']}:", each["call_us"])
            console.print(f"appended to {path}")


def catalogues(arguments: argparse.Namespace) -> Iterator[tuple[Matrix, str]]:
    if arguments.vectors is not None:
        yield unit(np.load(arguments.vectors, allow_pickle=False)), arguments.vectors.stem
        return
    for size, dim in product(arguments.sizes, arguments.dims):
        if size * dim <= LARGEST_VALUES:
            yield unit(np.random.default_rng(0).standard_normal((size, dim), dtype=np.float32)), "random"


def unit(vectors: Matrix) -> Matrix:
    return np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def measure_retrieval(cell: Cell, catalogue: Matrix, skip: tuple[str, ...]) -> list[dict[str, Any]]:
    """Unit queries to the k best rows."""
    queries = unit(np.random.default_rng(1).standard_normal((cell.batch, cell.dim), dtype=np.float32))
    measured = variants(catalogue, cell.k, cell.threads, skip=skip)
    found = {name: variant.find(queries) for name, variant in measured.items()}
    recalls = {name: recall(rows, queries, catalogue) for name, rows in found.items()}
    require_exact(measured, recalls)
    machine = Machine.measure(cell.threads)
    calls = {name: (lambda variant=variant: variant.find(queries)) for name, variant in measured.items()}
    timings = timed(calls, cell.seconds)
    work = 2 * cell.batch * catalogue.size
    index = CpuIndex(catalogue, int8=True)
    rescored = cpu_score(index, queries, None, None, None, np.ones(cell.batch, np.float32), cell.k).num_rescored
    return [
        result(
            "scoring", name, cell, timings[name], machine, work, read_bytes(measured[name], catalogue),
            recall=round(recalls[name], 4), **({"rows_rescored": float(rescored.mean())} if "int8" in name else {}),
        )
        for name in measured
    ]  # fmt: skip


def require_exact(measured: Mapping[str, Variant], recalls: Mapping[str, float]) -> None:
    for name, variant in measured.items():
        if variant.exact and recalls[name] < 1:
            raise AssertionError(f"{name} found {recalls[name]:.4f} of the best rows")


def recall(found: Rows, queries: Matrix, catalogue: Matrix) -> float:
    """Share of answers among the best by float64 scores, but for the rounding of float32. First sessions only."""
    hits = 0.0
    checked = min(len(queries), CHECKED_SESSIONS)
    for b in range(checked):
        scores = np.concatenate([part.astype(np.float64) @ queries[b].astype(np.float64)
                                 for part in np.array_split(catalogue, max(1, len(catalogue) // 100_000))])  # fmt: skip
        width = found.shape[1]
        worst = np.partition(scores, len(scores) - width)[len(scores) - width]
        best = set(np.flatnonzero(scores >= worst - TOLERANCE).tolist())
        hits += len(best & set(found[b].tolist())) / width
    return hits / checked


def read_bytes(variant: Variant, catalogue: Matrix) -> int | None:
    return None if variant.bytes_per_value is None else variant.bytes_per_value * catalogue.size


def measure_fused(cell: Cell, catalogue: Matrix, skip: tuple[str, ...]) -> list[dict[str, Any]]:
    """Latent queries and user vectors to the k best rows: W e + b, normalisation, fusion, scores, winners."""
    assert cell.latent_dim is not None
    rng = np.random.default_rng(1)
    user, latents, weight, bias = (
        rng.standard_normal(shape, dtype=np.float32)
        for shape in ((cell.batch, cell.dim), (cell.batch, cell.latent_dim), (cell.dim, cell.latent_dim), (cell.dim,))
    )
    omega = np.full(cell.batch, OMEGA, np.float32)
    index = CpuIndex(catalogue, int8=True)
    tensors = [torch.from_numpy(array) for array in (user, latents, weight, bias, catalogue)]
    torch.set_num_threads(cell.threads)

    def ours(scan: Scan) -> Callable[[], Rows]:
        threads = our_threads(cell.threads)
        return lambda: cpu_score(index, user, latents, weight, bias, omega, cell.k, num_threads=threads, scan=scan).rows

    def fused(user: torch.Tensor, latents: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor,
              catalogue: torch.Tensor) -> torch.Tensor:  # fmt: skip
        query = normalize(linear(latents, weight, bias), dim=-1)
        return ((OMEGA * normalize(user, dim=-1) + (1 - OMEGA) * query) @ catalogue.T).topk(cell.k).indices

    def with_torch(call: Callable[..., torch.Tensor]) -> Callable[[], Rows]:
        @torch.inference_mode()
        def find() -> Rows:
            found: Rows = call(*tensors).numpy()
            return found

        return find

    calls = {"rgalign fp32": ours("fp32"), "rgalign int8": ours("int8"), "torch": with_torch(fused)}
    if "torch.compile" not in skip:
        calls["torch.compile"] = with_torch(torch.compile(fused, dynamic=False))
    query = unit((latents.astype(np.float64) @ weight.T.astype(np.float64) + bias).astype(np.float32))
    v = (OMEGA * unit(user) + (1 - OMEGA) * query).astype(np.float32)
    recalls = {name: recall(call(), v, catalogue) for name, call in calls.items()}
    if min(recalls.values()) < 1:
        raise AssertionError(f"shares of the best rows that were found: {recalls}")
    machine = Machine.measure(cell.threads)
    timings = timed(calls, cell.seconds)
    work = 2 * cell.batch * (catalogue.size + weight.size)
    read = {name: weight.nbytes + catalogue.size * (1 if "int8" in name else 4) for name in calls}
    return [
        result("scoring from latents", name, cell, timings[name], machine, work, read[name], recall=recalls[name])
        for name in calls
    ]


def timed(calls: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Seconds of each call, in turn, as often as the time allows and at least five times."""
    began = time.perf_counter()
    in_turn(calls, repeats=1, warmup=WARMUP)
    one_turn = (time.perf_counter() - began) / (WARMUP + 1)
    return in_turn(calls, repeats=max(5, min(5_000, int(seconds / one_turn))))


def result(
    benchmark: str, name: str, cell: Cell, seconds: list[float], machine: Machine, work: int, read: int | None,
    **more: Any,
) -> dict[str, Any]:  # fmt: skip
    median = float(np.median(seconds))
    return row(
        benchmark,
        variant=name,
        **cell.described(),
        calls=len(seconds),
        call_us=spread([each * 1e6 for each in seconds], 2),
        sessions_per_s=round(cell.batch / median, 1),
        copy_gb_per_s=round(machine.copy_gb_per_s, 2),
        matmul_gflop_per_s=round(machine.matmul_gflop_per_s, 1),
        share_of_copy=None if read is None else round(read / median / 1e9 / machine.copy_gb_per_s, 3),
        share_of_matmul=None if read is None else round(work / median / 1e9 / machine.matmul_gflop_per_s, 3),
        instructions=INSTRUCTION_SETS[0],
        peers=versions(),
        **more,
    )


if __name__ == "__main__":
    main()
