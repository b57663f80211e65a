"""How fast the CPU engine is, beside transformers, ONNX Runtime and OpenVINO: prompts to latent queries.

    python -m rgalign.bench.engine --peers build/engine-peers      all of it; rows go to bench/results/engine.jsonl
    python -m rgalign.bench.engine --quick                         less of it, to build/bench/engine_quick.jsonl
    python -m rgalign.bench.engine --templates paper --batches 1 --threads 1 --only cells

``cells``      every variant on the same token ids, for each template, batch and number of threads
``waterfall``  the engine's techniques, switched on one by one (engine_waterfall.py)
``loading``    seconds and resident memory of a fresh process (engine_loading.py)

Before anything is timed, each variant's states are compared with transformers in float32. Variants are timed in turn,
every one with the same next batch; a row holds one variant's median and 20th and 80th percentiles over all turns, and
its speed-up over transformers with the whole prompt, turn by turn. Peers compute a batch padded and sorted by length,
in groups of the size they are fastest with; without --peers, those that are not installed are left out.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from rgalign import _C
from rgalign.bench.engine_environment import measure_inside
from rgalign.bench.engine_loading import measure_loading
from rgalign.bench.engine_peers import (
    Matrix,
    Variant,
    regrouped,
    versions,
    with_fastest_group,
    with_runtimes,
    with_transformers,
)
from rgalign.bench.engine_prompts import Workload, computed_tokens, workload
from rgalign.bench.engine_waterfall import waterfall
from rgalign.bench.engine_work import Peaks, measure_peaks, prefill_gflop
from rgalign.bench.rows import RESULTS, ROOT, append, in_turn, row, spread
from rgalign.chat_format import TEMPLATES
from rgalign.errors import DataError
from rgalign.reasoner.engine.artifact import MANIFEST, read_manifest
from rgalign.reasoner.engine.build import build_engine
from rgalign.reasoner.engine.checkpoint import DecoderConfig
from rgalign.reasoner.engine.reasoner import load_engine
from rgalign.reasoner.prefix_tree import TokenIds
from rgalign.reasoner.pretrained import load_causal_lm, model_fingerprint

ENGINES = {"fp32": 0.99999, "int8a12": 0.999, "int8": 0.98}  # dtype -> least cosine
BASELINE = "transformers fp32, whole prompt"
WHOLE = "transformers, whole prompt"  # the same as the waterfall's first step
PARTS = ("cells", "waterfall", "loading")
MAX_BATCH_TOKENS = 256  # of a forward pass of the engine: its default
QUICK_GROUP = 4
WORK = ROOT / "build" / "bench" / "engine"

console = Console()


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Args:
        seconds: of timing a cell; at least ``min_turns``, at most ``max_turns`` turns of all variants.
        waterfall_turns, waterfall_prompts: of the waterfall.
        checked: prompts whose states are compared before.
        probe: whether peers try every group size.
        calibrated: whether OpenVINO's W8A8 takes part.
    """

    seconds: float
    min_turns: int
    max_turns: int
    waterfall_turns: int
    waterfall_prompts: int
    checked: int
    probe: bool
    calibrated: bool


FULL = Effort(150, 5, 40, 3, 16, 6, probe=True, calibrated=True)
QUICK = Effort(10, 2, 10, 3, 4, 3, probe=False, calibrated=False)


@dataclass(frozen=True)
class Setting:
    """What is common to all rows of a cell."""

    config: DecoderConfig
    workload: Workload
    batch: int
    threads: int
    peaks: Peaks
    model: str

    def described(self) -> dict[str, Any]:
        lengths = [len(ids) for ids in self.workload.token_ids]
        return {
            "model": self.model,
            "template": self.workload.template,
            "B": self.batch,
            "threads": self.threads,
            "prefix_tokens": self.workload.prefix_length,
            "own_tokens": spread(lengths, 1),
            "peaks_gflop_per_s": self.peaks.described(),
            "instructions": _C.engine_instruction_sets()[0],
            "peers": versions(),
        }


def main() -> None:
    arguments = parsed(sys.argv[1:])
    if arguments.peers is not None:
        measure_inside(arguments.peers, "rgalign.bench.engine", without_peers(sys.argv[1:]))
    effort = QUICK if arguments.quick else FULL
    work = WORK / model_fingerprint(arguments.model)[:12]
    work.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_causal_lm(arguments.model)
    engines = built(arguments.model, work)
    loads = [workload(tokenizer, template, arguments.prompts) for template in arguments.templates]
    for threads in arguments.threads:
        peaks = measure_peaks(threads)
        for load in loads:
            base = (read_manifest(engines["fp32"]).config, load)
            if "cells" in arguments.only:
                made = variants(model, engines, load, threads, work, effort)
                for batch in arguments.batches:
                    setting = Setting(*base, batch, threads, peaks, arguments.model)
                    record(arguments.out, measure_cell(setting, made, effort))
                del made
                gc.collect()
            if "waterfall" in arguments.only and threads == arguments.threads[0]:
                setting = Setting(*base, effort.waterfall_prompts, threads, peaks, arguments.model)
                steps = waterfall(model, engines, load, threads)
                record(arguments.out, measure_waterfall(setting, steps, effort))
    if "loading" in arguments.only:
        record(arguments.out, [loading_row(arguments.model, path, loads[0]) for path in engines.values()])


def parsed(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None, allow_abbrev=False)
    parser.add_argument("--model", default="smollm2", help="a Llama: smollm2, or a directory")
    parser.add_argument("--templates", nargs="+", choices=sorted(TEMPLATES), help="default: all; --quick: paper")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="prompts a call")
    parser.add_argument("--threads", type=int, nargs="+", help="default: 1 and all cores; --quick: all cores")
    parser.add_argument("--prompts", type=int, default=48, help="different ones")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="ten minutes at most on two cores")
    parser.add_argument(
        "--peers", type=Path, metavar="DIR", help="an environment with the peers; made if it is not there"
    )
    parser.add_argument("--out", help=f"file in {RESULTS}, or an absolute path")
    arguments = parser.parse_args(given)
    cores = len(os.sched_getaffinity(0))
    everything = (sorted(TEMPLATES, key=lambda name: name != "paper"), sorted({1, cores}), "engine.jsonl")
    less = (["paper"], [cores], str(ROOT / "build" / "bench" / "engine_quick.jsonl"))
    templates, threads, out = less if arguments.quick else everything
    arguments.templates = arguments.templates or templates
    arguments.threads = arguments.threads or threads
    arguments.out = arguments.out or out
    if arguments.prompts < max(arguments.batches):
        parser.error(f"--prompts {arguments.prompts} is less than a batch of {max(arguments.batches)}")
    return arguments


def without_peers(given: Sequence[str]) -> list[str]:
    """The same arguments for the process in the peers' environment."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--peers")
    return parser.parse_known_args(given)[1]


def built(model: str, work: Path) -> dict[str, Path]:
    """The engine directories of each dtype, built unless they are there for these weights."""
    engines = {dtype: work / f"engine-{dtype}" for dtype in ENGINES}
    for dtype, directory in engines.items():
        if not is_of(directory, model):
            shutil.rmtree(directory, ignore_errors=True)
            build_engine(model, directory, dtype)
    return engines


def is_of(directory: Path, model: str) -> bool:
    """Whether there is an engine of these weights that this version reads."""
    if not (directory / MANIFEST).is_file():
        return False
    try:
        return read_manifest(directory).model == model_fingerprint(model)
    except DataError:  # of an earlier format
        return False


# ---- cells -----------------------------------------------------------------------------------------------------------


def variants(
    model: Any, engines: Mapping[str, Path], load: Workload, threads: int, work: Path, effort: Effort
) -> dict[str, Variant]:
    """All of them, with one number of threads and one prefix, compared with transformers in float32."""
    torch.set_num_threads(threads)
    made = dict(with_transformers(model, load))
    made.update(with_runtimes(model, load, threads, work, calibrated=effort.calibrated))
    for dtype, least in ENGINES.items():
        made[f"rgalign {dtype}"] = Variant(ours(engines[dtype], load, threads), dtype, least, pruned=True)
    return made


def ours(directory: Path, load: Workload, threads: int) -> Callable[[Sequence[TokenIds]], Matrix]:
    reasoner = load_engine(directory, threads, max_batch_tokens=MAX_BATCH_TOKENS)

    def embed(prompts: Sequence[TokenIds]) -> Matrix:
        states: Matrix = reasoner.embed(prompts, prefix_ids=load.prefix_ids).numpy()
        return states

    return embed


def require_near(
    made: Mapping[str, Variant], prompts: Sequence[TokenIds], baseline: str
) -> dict[str, dict[str, float]]:
    """Mean and least cosine of each variant's states to the baseline's, which is computed one prompt at a time.

    Raises:
        AssertionError: a variant is further from it than its type may be: it must not be timed.
    """
    expected = regrouped(made[baseline], 1).embed(prompts).astype(np.float64)
    assert expected.std() > 0, "the baseline's states are all alike"
    found = {}
    for name, variant in made.items():
        states = regrouped(variant, len(prompts)).embed(prompts).astype(np.float64)
        cosines = (states * expected).sum(axis=1) / (np.linalg.norm(states, axis=1) * np.linalg.norm(expected, axis=1))
        found[name] = {"mean": round(float(cosines.mean()), 7), "least": round(float(cosines.min()), 7)}
        if not cosines.min() >= variant.least_cosine:
            raise AssertionError(f"{name}: cosine {cosines.min():.6f} to {baseline}, required {variant.least_cosine}")
    return found


def measure_cell(setting: Setting, made: Mapping[str, Variant], effort: Effort) -> list[dict[str, Any]]:
    cosines = require_near(made, setting.workload.token_ids[: effort.checked], BASELINE)
    batches = setting.workload.batches(setting.batch)
    chosen = {name: grouped(variant, batches[0], effort) for name, variant in made.items()}
    seconds = timed(chosen, batches, effort)
    return [
        cell_row(setting, name, chosen[name], batches, seconds, cosines[name]) for name in chosen
    ]  # fmt: skip


def grouped(variant: Variant, batch: Sequence[TokenIds], effort: Effort) -> Variant:
    return with_fastest_group(variant, batch) if effort.probe else regrouped(variant, min(QUICK_GROUP, len(batch)))


def timed(made: Mapping[str, Variant], batches: Sequence[Sequence[TokenIds]], effort: Effort) -> dict[str, list[float]]:
    """Seconds of each call; in each turn all variants compute the same batch, in the next one the next."""

    def cycling(variant: Variant) -> Callable[[], Matrix]:
        coming: Iterator[Sequence[TokenIds]] = itertools.cycle(batches)
        return lambda: variant.embed(next(coming))

    calls = {name: cycling(variant) for name, variant in made.items()}
    began = time.perf_counter()
    in_turn(calls, repeats=1, warmup=0)
    turns = int(effort.seconds / (time.perf_counter() - began))
    return in_turn(calls, repeats=min(effort.max_turns, max(effort.min_turns, turns)), warmup=0)


def cell_row(
    setting: Setting,
    name: str,
    variant: Variant,
    batches: Sequence[list[TokenIds]],
    seconds: Mapping[str, list[float]],
    cosine: Mapping[str, float],
) -> dict[str, Any]:
    mine = np.array(seconds[name])
    turns = len(mine)
    # The first batch warmed them up: see timed().
    done = [batches[(turn + 1) % len(batches)] for turn in range(turns)]
    work = np.array([gflop(setting, variant, batch) for batch in done])
    tokens = np.array([sum(len(ids) + setting.workload.prefix_length for ids in batch) for batch in done])
    rate = float(np.median(work / mine))
    peaks = setting.peaks
    registers = peaks.of(variant.dtype)
    return row(
        "engine",
        variant=name,
        dtype=variant.dtype,
        **setting.described(),
        reuses_prefix=variant.reuses_prefix,
        group=variant.group,
        turns=turns,
        prompt_ms=spread((mine / setting.batch * 1e3).tolist(), 2),
        speedup=spread((np.array(seconds[BASELINE]) / mine).tolist(), 2),
        prompt_tokens_per_s=round(float(np.median(tokens / mine)), 1),
        gflop_per_s=round(rate, 1),
        share_of_sgemm=round(rate / peaks.sgemm, 3),
        share_of_registers=round(rate / registers, 3) if registers else None,
        cosine=dict(cosine),
    )


def gflop(setting: Setting, variant: Variant, batch: list[TokenIds]) -> float:
    """Of what the variant must compute of a batch, without its padding."""
    prefix = setting.workload.prefix_length
    lengths = [len(ids) + (0 if variant.reuses_prefix else prefix) for ids in batch]
    tokens = sum(lengths) if variant.forward is not None else computed_tokens(batch, MAX_BATCH_TOKENS)
    behind = prefix if variant.reuses_prefix else 0
    return prefill_gflop(setting.config, lengths, behind, tokens, pruned=variant.pruned)


# ---- waterfall and loading -------------------------------------------------------------------------------------------


def measure_waterfall(setting: Setting, steps: Mapping[str, Variant], effort: Effort) -> list[dict[str, Any]]:
    batch = list(setting.workload.token_ids[: setting.batch])
    cosines = require_near(steps, batch[: effort.checked], WHOLE)
    calls = {name: (lambda variant=variant: variant.embed(batch)) for name, variant in steps.items()}
    seconds = in_turn(calls, repeats=effort.waterfall_turns, warmup=1)
    return [
        row(
            "engine waterfall",
            step=name,
            place=place,
            **setting.described(),
            turns=effort.waterfall_turns,
            prompt_ms=spread([each / setting.batch * 1e3 for each in seconds[name]], 2),
            cosine=cosines[name],
        )
        for place, name in enumerate(steps)
    ]


def loading_row(model: str, directory: Path, load: Workload, repeats: int = 3) -> dict[str, Any]:
    measured = [measure_loading(directory, load.prefix_length) for _ in range(repeats)]
    return row(
        "engine loading",
        model=model,
        dtype=read_manifest(directory).dtype,
        prefix_tokens=load.prefix_length,
        seconds=spread([each.seconds for each in measured]),
        growth_bytes=spread([each.growth_bytes for each in measured], 0),
        needed_bytes=measured[0].needed_bytes,
        growth_over_needed=spread([each.ratio for each in measured]),
    )


def record(out: str, rows: list[dict[str, Any]]) -> None:
    """Appends rows as soon as they are there, and prints what was measured."""
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    path = append(out, rows)
    for each in rows:
        name = each.get("variant") or each.get("step") or each["dtype"]
        value = each.get("prompt_ms") or each["seconds"]
        where = f"{each.get('template', '')} B {each.get('B', '-')} threads {each.get('threads', 1)}"
        console.print(f"{each['benchmark']}, {where}, {name}:", value, each.get("speedup", ""))
    console.print(f"appended to {path}")


if __name__ == "__main__":
    main()
