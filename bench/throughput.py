"""How many sessions a second: simulate, embed (with and without sharing prompts' beginnings), train.

python -m rgalign.bench.throughput [--only simulate train embed]     rows appended to bench/results/throughput.jsonl
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from rgalign.bench.rows import RESULTS, append, in_turn, row, spread
from rgalign.data.dataset import Dataset
from rgalign.data.encode import NumericStats, SessionEncoder
from rgalign.data.simulator import SimulatorConfig, simulate
from rgalign.models import BaselineConfig, QERecConfig, build_ranker
from rgalign.reasoner.hf import HFReasoner
from rgalign.reasoner.prefix_tree import TokenIds
from rgalign.training.embed import EmbedConfig, prompt_encoder
from rgalign.training.optimiser import OptimiserConfig, adamw

NUM_PROMPTS = 24
PADDED_BATCH = 16
AGREEMENT = 1e-3  # largest difference of latent queries between the variants; they are of norm 50
BATCH = 1024
LATENT_DIM = 576
WORKERS = 2
PARTS = ("simulate", "train", "embed")
CONTEXT = ("hardware", "versions", "commit", "time")  # of every row

console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sessions", type=int, default=100_000, help="simulated sessions")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", default="throughput.jsonl", help=f"file in {RESULTS}, or an absolute path")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        simulated = simulate_row(Path(directory) / "large", arguments.sessions)
        if "simulate" in arguments.only:
            record(arguments.out, [simulated])
        dataset = Dataset.open(Path(directory) / "large")
        if "train" in arguments.only:
            record(arguments.out, train_rows(dataset, arguments.repeats))
        if "embed" in arguments.only:
            record(arguments.out, embed_rows(dataset, arguments.repeats))


def record(out: str, rows: list[dict[str, Any]]) -> None:
    """Appends rows as soon as they are there, and prints what was measured."""
    path = append(out, rows)
    for each in rows:
        console.print({name: value for name, value in each.items() if name not in CONTEXT})
    console.print(f"appended to {path}")


def simulate_row(out: Path, sessions: int) -> dict[str, Any]:
    config = SimulatorConfig(num_sessions=sessions)
    seconds = in_turn({"simulate": lambda: simulate(config, out, workers=WORKERS, progress=False)}, 1, warmup=0)
    rate = sessions / seconds["simulate"][0]
    return row("simulate", sessions=sessions, workers=WORKERS, intents=config.num_intents, sessions_per_s=round(rate))


def embed_rows(dataset: Dataset, repeats: int) -> list[dict[str, Any]]:
    """The same prompts three ways, checked equal before they are timed."""
    config = EmbedConfig(model="smollm2", template="prefix_cached")
    reasoner = HFReasoner.from_pretrained(config.model, max_batch_tokens=config.pack_tokens)
    encoder = prompt_encoder(config, reasoner.tokenizer, dataset)
    sessions = dataset.table("valid", dataset.schema.columns).slice(0, NUM_PROMPTS).to_pylist()
    suffix = np.asarray(encoder.suffix_ids, dtype=np.int32)
    own = [np.concatenate([ids, suffix]) for ids in encoder.encode_many(sessions)]
    prefix = list(encoder.prefix_ids)
    whole = [np.concatenate([np.asarray(prefix, np.int32), ids]) for ids in own]
    variants: dict[str, Callable[[], torch.Tensor]] = {
        "padded batches, nothing shared": lambda: embed_padded(reasoner, whole),
        "constant prefix cached": lambda: torch.cat([reasoner.embed([ids], prefix_ids=prefix) for ids in own]),
        "constant prefix cached, prefix tree": lambda: reasoner.embed(own, prefix_ids=prefix),
    }
    outcomes = [call() for call in variants.values()]
    difference = max(float((outcomes[0] - other).abs().max()) for other in outcomes[1:])
    if difference > AGREEMENT:
        raise AssertionError(f"the variants disagree by {difference}")
    tokens = sum(map(len, whole))
    timings = in_turn(variants, repeats)
    shape = {
        "prompts": len(own),
        "tokens_per_prompt": round(tokens / len(own), 1),
        "prefix_tokens": len(prefix),
        "model": "SmolLM2-135M",
        "dtype": "float32",
        "largest_difference": difference,
    }
    return [
        row(
            "embed",
            variant=name,
            **shape,
            repeats=repeats,
            prompts_per_s=spread([len(own) / each for each in seconds]),
            prompt_tokens_per_s=spread([tokens / each for each in seconds], 1),
        )
        for name, seconds in timings.items()
    ]


def embed_padded(reasoner: HFReasoner, prompts: list[TokenIds]) -> torch.Tensor:
    """The definition: right-padded batches of similar lengths, every prompt computed whole."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    latents = torch.empty(len(prompts), reasoner.hidden_size)
    for start in range(0, len(order), PADDED_BATCH):
        rows = order[start : start + PADDED_BATCH]
        width = max(len(prompts[index]) for index in rows)
        input_ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for place, index in enumerate(rows):
            input_ids[place, : len(prompts[index])] = torch.from_numpy(prompts[index].astype(np.int64))
            mask[place, : len(prompts[index])] = 1
        latents[rows] = reasoner.embed_padded(input_ids, mask)
    return latents


def train_rows(dataset: Dataset, repeats: int) -> list[dict[str, Any]]:
    """One optimiser step of each ranker on a batch in memory, in turn."""
    table = dataset.table("train").slice(0, BATCH)
    encoder = SessionEncoder(dataset.schema, dataset.catalog, NumericStats.fit(table, dataset.schema))
    latents = np.random.default_rng(0).standard_normal((BATCH, LATENT_DIM), dtype=np.float32)
    batch = encoder.encode(table, latents)
    steps: dict[str, Callable[[], None]] = {}
    for name, config in (("baseline", BaselineConfig()), ("qe_rec", QERecConfig())):
        ranker = build_ranker(config, dataset.schema, dataset.catalog, LATENT_DIM)
        steps[name] = step_of(ranker, batch, adamw(ranker, OptimiserConfig()))
    timings = in_turn(steps, repeats)
    return [
        row(
            "train step",
            variant=name,
            batch=BATCH,
            intents=len(dataset.catalog),
            features=len(dataset.schema.features),
            repeats=repeats,
            sessions_per_s=spread([BATCH / each for each in seconds], 1),
        )
        for name, seconds in timings.items()
    ]


def step_of(ranker: Any, batch: Any, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    def step() -> None:
        optimizer.zero_grad()
        ranker(batch).total.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
