"""How many sessions a second the rankers train on, over the batch size: steps of an optimiser on batches in memory.

    python -m rgalign.bench.training_work [--batches 256 1024 4096]    rows: bench/results/training.jsonl

The two-tower baseline of the paper is the yardstick of QE-Rec, in the same run; a step's loss is a number and its
gradients are not all zero before it is timed.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from rgalign.bench.rows import RESULTS, append, in_turn, row, spread
from rgalign.bench.throughput import LATENT_DIM, step_of
from rgalign.data.batch import SessionBatch
from rgalign.data.dataset import Dataset
from rgalign.data.encode import NumericStats, SessionEncoder
from rgalign.data.simulator import SimulatorConfig, simulate
from rgalign.models import BaselineConfig, QERecConfig, build_ranker
from rgalign.training.optimiser import OptimiserConfig, adamw

console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batches", type=int, nargs="+", default=(256, 1_024, 4_096))
    parser.add_argument("--sessions", type=int, default=10_000, help="simulated, of which most are for training")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default="training.jsonl", help=f"file in {RESULTS}, or an absolute path")
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "simulated"
        simulate(SimulatorConfig(num_sessions=arguments.sessions), path, workers=1, progress=False)
        dataset = Dataset.open(path)
        whole = encoded_sessions(dataset, max(arguments.batches), LATENT_DIM)
        for batch in arguments.batches:
            rows = measure(dataset, whole.select(torch.arange(batch)), arguments.repeats)
            for each in rows:
                console.print(f"batch {batch} {each['variant']}:", each["sessions_per_s"])
            console.print(f"appended to {append(arguments.out, rows)}")


def encoded_sessions(dataset: Dataset, count: int, latent_dim: int) -> SessionBatch:
    """Training sessions with random latent queries; fewer in the dataset is an error of the caller's."""
    table = dataset.table("train").slice(0, count)
    assert len(table) == count, f"{count} sessions wanted, {len(table)} there"
    encoder = SessionEncoder(dataset.schema, dataset.catalog, NumericStats.fit(table, dataset.schema))
    latents = np.random.default_rng(0).standard_normal((count, latent_dim), dtype=np.float32)
    return encoder.encode(table, latents)


def measure(dataset: Dataset, batch: SessionBatch, repeats: int) -> list[dict[str, Any]]:
    steps = {}
    for name, config in (("two-tower baseline", BaselineConfig()), ("rgalign qe_rec", QERecConfig())):
        ranker = build_ranker(config, dataset.schema, dataset.catalog, LATENT_DIM)
        require_learning(name, ranker, batch)
        steps[name] = step_of(ranker, batch, adamw(ranker, OptimiserConfig()))
    return [
        row(
            "train steps", variant=name, batch=len(batch), intents=len(dataset.catalog),
            features=len(dataset.schema.features), threads=torch.get_num_threads(), repeats=repeats,
            call_ms=spread([each * 1e3 for each in seconds], 2),
            sessions_per_s=spread([len(batch) / each for each in seconds], 1),
        )
        for name, seconds in in_turn(steps, repeats).items()
    ]  # fmt: skip


def require_learning(name: str, ranker: Any, batch: SessionBatch) -> None:
    """Raises AssertionError for a step that is not one."""
    loss = ranker(batch).total
    loss.backward()
    reached = float(loss.detach())
    slope = sum(float(each.grad.abs().sum()) for each in ranker.parameters() if each.grad is not None)
    ranker.zero_grad()
    if not (math.isfinite(reached) and math.isfinite(slope) and slope > 0):
        raise AssertionError(f"{name}: loss {reached}, gradients that sum to {slope}")


if __name__ == "__main__":
    main()
