"""The demo: sessions, then the whole closed loop on them, in some minutes; each half ends with what it is for.

    rankers on the first reasoner's latent queries    -> comparison, three recommendations
    the reasoner aligned, the ranker recalibrated     -> comparison with its control, the same three recommendations

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
from rgalign.data.simulator.features import NAME as SIMULATED
from rgalign.data.sources.boston311 import import_boston311
from rgalign.data.sources.service_line import BOSTON
from rgalign.errors import ConfigError, DataError
from rgalign.files import read_json
from rgalign.training.embed import EmbedConfig, load_reasoner, prompt_encoder
from rgalign.training.evaluate import evaluate
from rgalign.training.experiment import score_run
from rgalign.training.hllm import HLLMConfig, build_semantic
from rgalign.training.loop.arms import arms_table
from rgalign.training.loop.graph import report_path
from rgalign.training.loop.loop import run_loop
from rgalign.training.loop.loop_config import LoopConfig
from rgalign.training.recommend import SessionRecommender, describe, find_session
from rgalign.training.report import print_comparison

SIMULATED_SESSIONS = 20_000
SIMULATED_INTENTS = 220
READ_SHARE = 0.12  # of the time: the reasoner reads every session once; it reads them again once it is aligned
SHARES = {"train": 0.55, "valid": 0.2, "test": 0.25}  # of the sessions
ALIGNED_SHARE = 0.5  # of the training sessions, and
MAX_ALIGNED = 100  # at most, for training the reasoner takes most of the time
PROBE_PROMPTS = 24
MIN_SESSIONS, MAX_SESSIONS = 640, 8000
EXAMPLES = 3
LOSS = {"mask_unseen": False, "part_weight": 0.5, "title_weight": 1.0}
SHOWN_METRICS = ("recall@3", "ndcg@3", "mrr_first")
FIRST_OF_ALIGNMENT = "round1/generate"
TEACHERS = ("transition", "neighbour")


def run_demo(out: Path, data: Path | None, minutes: float, console: Console) -> None:
    """Runs the demo into ``out``; what an earlier call finished is kept.

    Args:
        data: Boston's own 311 CSV, or None for the simulator.
        minutes: the time to fit, on this machine, downloads aside.
    """
    began = time.perf_counter()
    embedding = EmbedConfig(
        model="smollm2", template="prefix_cached", titles=True, backend="engine", engine_dtype="int8a12"
    )
    console.rule("sessions")
    dataset = demo_dataset(out, data, embedding, minutes * 60 * READ_SHARE, console)
    console.print(", ".join(f"{dataset.num_rows(split)} {split}" for split in SPLITS), "sessions,", end=" ")
    console.print(f"{len(dataset.catalog)} intents")

    console.rule("text vectors of the intents")
    # The frozen model's mean states: as good as a pre-trained token where measured (docs/item_encoder.md), and quicker.
    fields = tuple(name for name in ("title", "path") if name == "title" or name in dataset.catalog.extra)
    build_semantic(dataset, HLLMConfig(tune="none", text_fields=fields), out / "semantic")

    loop, root = demo_loop(dataset, out, embedding), out / "loop"

    def announce(step: str, state: str) -> None:
        if step == FIRST_OF_ALIGNMENT:
            show_rankers(root, loop, dataset, out / "rankers", console)
            show_time(began, console)
        console.rule(step)

    run_loop(loop, root, announce=announce)
    console.rule("the aligned reasoner, on the test sessions")
    report = report_path(root)
    console.print(arms_table(read_json(report.with_suffix(".json")), SHOWN_METRICS, ("baseline", "control")))
    show_examples(root / "round1/stage3/out/seed0", dataset, console)
    console.rule()
    console.print(f"report: {report}")
    show_time(began, console)


def demo_loop(dataset: Dataset, out: Path, embedding: EmbedConfig) -> LoopConfig:
    """Candidates from the log alone, two rankers for the reward, one epoch an alignment: a loop of minutes."""
    num_aligned = min(MAX_ALIGNED, int(dataset.num_rows("train") * ALIGNED_SHARE))
    teachers = ({"kind": kind, "name": f"{kind}_{rank}", "rank": rank} for rank in (1, 2) for kind in TEACHERS)
    return LoopConfig(
        dataset=dataset.path,
        semantic=out / "semantic",
        embed=embedding,
        stage1={"batch_size": 128, "model": {"model": "qe_rec", "loss": LOSS}},
        generate={
            "max_sessions": num_aligned,
            "teachers": list(teachers),
        },
        reward={"folds": 2},
        select={"strategy": "V1"},
        alignment={"preset": "small_cpu", "epochs": 1},
        recalibrate_on="unaligned",
    )


def show_rankers(root: Path, loop: LoopConfig, dataset: Dataset, out: Path, console: Console) -> None:
    """The two rankers of stage 1: their comparison, and what the better-informed one recommends."""
    console.rule("the rankers, on the test sessions")
    runs = {"baseline": root / "baseline/out/seed0", "qe_rec": root / "stage1/out/seed0"}
    scored = [score_run(run, arm, loop.dataset) for arm, run in runs.items()]
    print_comparison(evaluate(scored, dataset, out, "baseline"), console)
    show_examples(runs["qe_rec"], dataset, console)
    console.print(f"report: {out / 'report.html'}")


def show_time(began: float, console: Console) -> None:
    console.print(f"{(time.perf_counter() - began) / 60:.1f} minutes")


def demo_dataset(out: Path, data: Path | None, embedding: EmbedConfig, seconds: float, console: Console) -> Dataset:
    """All sessions in ``out/all``, and in ``out/data`` as many as can be embedded in ``seconds``.

    Raises:
        ConfigError: another demo's sessions are there.
    """
    everything = out / "all"
    if everything.is_dir():
        found, wanted = Dataset.open(everything).schema.name, SIMULATED if data is None else BOSTON.name
        if found != wanted:
            required = f"a directory without a demo, or with one of {wanted} sessions (-o names another)"
            raise ConfigError(where=str(out), required=required, received=f"sessions of {found}")
    if (out / "data").is_dir():
        return Dataset.open(out / "data")
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
    console.rule("what three users would have seen")
    recommender = SessionRecommender(run)
    for row in spaced_rows(len(ids), min(EXAMPLES, len(ids))):
        console.print(describe(recommender.recommend(find_session(dataset, ids[row]))))
