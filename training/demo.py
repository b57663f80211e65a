"""The demo: sessions -> latent queries -> baseline and QE-Rec -> report and three recommendations, in a few minutes.

The reasoner's speed here is measured first, and as many sessions are used as its share of the time allows: the most
recent ones for training, evenly spaced ones for validation and test.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from rgalign.data.dataset import SPLITS, Dataset
from rgalign.data.sample import sample_dataset, spaced_rows
from rgalign.data.simulator import SimulatorConfig, simulate
from rgalign.data.sources.boston311 import import_boston311
from rgalign.errors import DataError
from rgalign.training.embed import EmbedConfig, embed_dataset, load_reasoner, prompt_encoder
from rgalign.training.experiment import ExperimentConfig, run_directory, run_experiment
from rgalign.training.hllm import HLLMConfig, build_semantic
from rgalign.training.recommend import SessionRecommender, describe, find_session
from rgalign.training.report import print_comparison

SIMULATED_SESSIONS = 20_000
SIMULATED_INTENTS = 300
EMBED_SHARE = 0.6  # of the time; the rest is text vectors, training and evaluation
SHARES = {"train": 0.6, "valid": 0.1, "test": 0.3}  # of the sessions
PROBE_PROMPTS = 24
MIN_SESSIONS, MAX_SESSIONS = 300, 8000
EXAMPLES = 3


def run_demo(out: Path, data: Path | None, minutes: float, console: Console) -> None:
    """Runs the demo into ``out``; what an earlier call finished is kept.

    Args:
        data: Boston's own 311 CSV, or None for the simulator.
        minutes: the time to fit, on this machine, downloads aside.
    """
    began = time.perf_counter()
    embedding = EmbedConfig(model="smollm2", template="prefix_cached")
    console.rule("1 sessions")
    dataset = demo_dataset(out, data, embedding, minutes * 60 * EMBED_SHARE, console)
    console.print(", ".join(f"{dataset.num_rows(split)} {split}" for split in SPLITS), "sessions,", end=" ")
    console.print(f"{len(dataset.catalog)} intents")

    console.rule("2 latent queries: SmolLM2-135M reads each session")
    report = embed_dataset(dataset, out / "latents", embedding)
    if report.distinct_prompts:
        console.print(f"{report.prompts_per_s:.1f} prompts/s, {report.tokens_per_s:.0f} prompt tokens/s")

    console.rule("3 text vectors of the intents")
    # The frozen model's mean states: as good as a pre-trained token where measured (docs/item_encoder.md), and quicker.
    fields = tuple(name for name in ("title", "path") if name == "title" or name in dataset.catalog.extra)
    build_semantic(dataset, HLLMConfig(tune="none", text_fields=fields), out / "semantic")

    console.rule("4 rankers")
    experiment = ExperimentConfig(
        dataset=dataset.path,
        baseline="baseline",
        arms={
            "baseline": {"model": {"model": "baseline"}},
            "qe_rec": {"model": {"model": "qe_rec"}, "latents": out / "latents"},
        },
        common={"batch_size": 256, "semantic": out / "semantic"},
        seeds=(0,),
    )
    comparison = run_experiment(experiment, out / "comparison", announce=lambda line: console.print(f"[dim]{line}[/]"))

    console.rule("5 comparison on the test sessions")
    print_comparison(comparison, console)
    console.rule("6 what three users would have seen")
    show_examples(run_directory(out / "comparison", "qe_rec", 0), dataset, console)
    console.rule()
    console.print(f"report: {out / 'comparison' / 'report.html'}")
    console.print(f"{(time.perf_counter() - began) / 60:.1f} minutes")


def demo_dataset(out: Path, data: Path | None, embedding: EmbedConfig, seconds: float, console: Console) -> Dataset:
    """All sessions in ``out/all``, and in ``out/data`` as many as can be embedded in ``seconds``."""
    if (out / "data").is_dir():
        return Dataset.open(out / "data")
    everything = out / "all"
    if not everything.is_dir():
        if data is None:
            settings = SimulatorConfig(num_sessions=SIMULATED_SESSIONS, num_intents=SIMULATED_INTENTS)
            simulate(settings, everything, progress=True)
        else:
            import_boston311(str(data), everything)
    dataset = Dataset.open(everything)
    rate = prompts_per_second(dataset, embedding)
    count = int(np.clip(rate * seconds, MIN_SESSIONS, MAX_SESSIONS))
    console.print(f"the reasoner reads {rate:.1f} prompts/s here: taking {count} of the sessions")
    sizes = {split: int(count * share) for split, share in SHARES.items()}
    return sample_dataset(dataset, out / "data", sizes, train="latest")


def prompts_per_second(dataset: Dataset, embedding: EmbedConfig) -> float:
    """Measured on a few recent sessions, the prefix aside."""
    reasoner = load_reasoner(embedding)
    encoder = prompt_encoder(embedding, reasoner.tokenizer, dataset)
    suffix = np.asarray(encoder.suffix_ids, dtype=np.int32)
    rows = dataset.table("train", dataset.schema.columns).slice(max(0, dataset.num_rows("train") - PROBE_PROMPTS))
    prompts = [np.concatenate([ids, suffix]) for ids in encoder.encode_many(rows.to_pylist())]
    reasoner.embed(prompts[:2], prefix_ids=encoder.prefix_ids)
    began = time.perf_counter()
    reasoner.embed(prompts, prefix_ids=encoder.prefix_ids)
    return len(prompts) / (time.perf_counter() - began)


def show_examples(run: Path, dataset: Dataset, console: Console) -> None:
    ids: list[Any] = dataset.table("test", ["session_id"]).column("session_id").to_pylist()
    if not ids:
        raise DataError(where=str(dataset.path / "test"), required="at least one session", received="none")
    recommender = SessionRecommender(run)
    for row in spaced_rows(len(ids), min(EXAMPLES, len(ids))):
        console.print(describe(recommender.recommend(find_session(dataset, ids[row]))))
