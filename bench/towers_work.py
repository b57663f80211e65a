"""How fast towers and scores are as they are served, beside the whole ranker in eager torch.

    python -m rgalign.bench.towers_work [--batches 1 16 256] [--intents 1000]    rows: bench/results/towers.jsonl

    rgalign, served             user tower -> fused vector and the k best by the CPU scorer, intents known
    torch, intents known        user and query towers, the [B, N] matrix of scores and its k best
    torch, whole ranker         the same, and the intent tower each time

The sessions are simulated, the latent queries random; the winners' scores are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from rgalign.bench.rows import RESULTS, append, row, spread
from rgalign.bench.scoring import timed
from rgalign.bench.training_work import encoded_sessions
from rgalign.cpu_scorer import CpuIndex, cpu_score
from rgalign.data.batch import SessionBatch
from rgalign.data.dataset import Dataset
from rgalign.data.simulator import SimulatorConfig, simulate
from rgalign.models import QERecConfig, Ranker, build_ranker
from rgalign.scoring import projection_of

LATENT_DIM = 576
K = 3
TOLERANCE = 1e-5  # of scores, which are cosines

Find = Callable[[], Any]  # -> the k best scores of each session

console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 16, 256), help="sessions a call")
    parser.add_argument("--intents", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=8.0, help="of timing a cell")
    parser.add_argument("--out", default="towers.jsonl", help=f"file in {RESULTS}, or an absolute path")
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "simulated"
        sessions = max(2_000, 4 * max(arguments.batches))
        simulate(SimulatorConfig(num_sessions=sessions, num_intents=arguments.intents), path, workers=1, progress=False)
        dataset = Dataset.open(path)
        ranker = build_ranker(QERecConfig(), dataset.schema, dataset.catalog, LATENT_DIM).eval().requires_grad_(False)
        whole = encoded_sessions(dataset, max(arguments.batches), LATENT_DIM)
    for batch in arguments.batches:
        calls = variants(ranker, whole.select(torch.arange(batch)))
        require_near(calls)
        rows = [
            row(
                "towers", variant=name, B=batch, intents=arguments.intents, features=len(dataset.schema.features),
                k=K, threads=torch.get_num_threads(), calls=len(seconds),
                call_ms=spread([each * 1e3 for each in seconds]),
                sessions_per_s=spread([batch / each for each in seconds], 1),
            )
            for name, seconds in timed(calls, arguments.seconds).items()
        ]  # fmt: skip
        for each in rows:
            console.print(f"B {batch} {each['variant']}:", each["call_ms"])
        console.print(f"appended to {append(arguments.out, rows)}")


def variants(ranker: Ranker, sessions: SessionBatch) -> dict[str, Find]:
    with torch.inference_mode():
        intents = ranker.intents().contiguous()
    index = CpuIndex(intents.numpy(), int8=True)
    assert ranker.query_tower is not None
    assert sessions.latent is not None
    projection = projection_of(ranker.query_tower)
    bias = None if projection.bias is None else projection.bias.numpy()
    omega = np.full(len(sessions), float(ranker.omega), np.float32)
    latents = sessions.latent.numpy()

    @torch.inference_mode()
    def served() -> Any:
        user = ranker.user(sessions).numpy()
        return cpu_score(index, user, latents, projection.weight.numpy(), bias, omega, K).scores

    @torch.inference_mode()
    def known() -> Any:
        return ranker.score(sessions, intents).total.topk(K).values.numpy()

    @torch.inference_mode()
    def whole() -> Any:
        return ranker.score(sessions).total.topk(K).values.numpy()

    return {"rgalign, served": served, "torch, intents known": known, "torch, whole ranker": whole}


def require_near(calls: dict[str, Find]) -> None:
    """Raises AssertionError for a variant whose best scores are not the last one's: it must not be timed."""
    expected = list(calls.values())[-1]()
    assert np.abs(expected).sum() > 0, "all scores are 0"
    for name, call in calls.items():
        if not np.allclose(call(), expected, rtol=0, atol=TOLERANCE):
            raise AssertionError(f"{name}: best scores differ by {np.abs(call() - expected).max()}")


if __name__ == "__main__":
    main()
