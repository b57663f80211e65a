"""How cost grows: over prompt length, batch, catalogue size and cores. Fitted exponents are the report's.

    python -m rgalign.bench.scaling_work length | batch | catalogue | cores    rows: bench/results/scaling.jsonl

length      one prompt of T tokens, nothing cached: the engine in each type beside transformers in float32; each row has
            the operations and the bytes of weights, for the roofline
batch       B prompts of the paper's form behind a cached prefix
catalogue   one session's k best of N unit vectors: the 8-bit and the float32 scan beside torch and NumPy
cores       the first two at one size, over the number of threads

States and winners are compared before anything is timed. A size that does not fit the memory that is free is left out,
and said. Sessions are the data suite's.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from rgalign.bench.engine import BASELINE, ENGINES, MAX_BATCH_TOKENS, WORK, built, require_near
from rgalign.bench.engine_peers import Matrix, Variant, padded, with_transformers
from rgalign.bench.engine_prompts import computed_tokens, workload
from rgalign.bench.engine_work import prefill_gflop
from rgalign.bench.rows import RESULTS, append, row, spread
from rgalign.bench.scoring import CHECKED_SESSIONS, recall, timed, unit
from rgalign.cpu_scorer import CpuIndex, Scan, cpu_score
from rgalign.errors import ConfigError
from rgalign.reasoner.engine.artifact import read_manifest
from rgalign.reasoner.engine.checkpoint import DecoderConfig
from rgalign.reasoner.engine.reasoner import EngineReasoner, load_engine
from rgalign.reasoner.prefix_tree import TokenIds
from rgalign.reasoner.pretrained import load_causal_lm, model_fingerprint

DEFAULTS = {
    "length": (16, 32, 64, 128, 256, 512, 1_024),
    "batch": (1, 2, 4, 8, 16, 32),
    "catalogue": (1_000, 10_000, 100_000, 1_000_000, 10_000_000),
    "cores": (),
}
CORES_LENGTH, CORES_CATALOGUE = 128, 100_000
DIM = 64  # of the catalogue: 10^7 rows of 128 do not fit the memory of a small machine
BYTES_A_VALUE = 4 + 9 + 4  # the rows, an index for 8-bit scans, and what building and checking take at their widest
K = 3
WEIGHT_BYTES = {"fp32": 4, "int8": 1, "int8a12": 1}

console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=DEFAULTS)
    parser.add_argument("--values", type=int, nargs="+", help="tokens, prompts or vectors; cores: threads")
    parser.add_argument("--seconds", type=float, default=4.0, help="of timing a point")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--out", default="scaling.jsonl", help=f"file in {RESULTS}, or an absolute path")
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    values = arguments.values or DEFAULTS[arguments.what] or range(1, cores + 1)
    if min(values) < 1:
        raise ConfigError(where="scaling --values", required="at least 1", received=str(min(values)))
    points = Points(arguments.seconds, arguments.model, arguments.out)
    if arguments.what in ("length", "batch"):
        models = Models(arguments.model)
        for value in values:
            (points.length if arguments.what == "length" else points.batch)(models, value, cores)
    elif arguments.what == "catalogue":
        for value in values:
            points.catalogue(value, cores)
    else:
        models = Models(arguments.model)
        for threads in values:
            points.length(models, CORES_LENGTH, threads, benchmark="scaling: cores, prompt")
            points.catalogue(CORES_CATALOGUE, threads, benchmark="scaling: cores, catalogue")


class Models:
    """The model in transformers and as engines, loaded once for each number of threads."""

    def __init__(self, name: str) -> None:
        work = WORK / model_fingerprint(name)[:12]
        work.mkdir(parents=True, exist_ok=True)
        self.model, self.tokenizer = load_causal_lm(name)
        self.directories: Mapping[str, Path] = built(name, work)
        self.config: DecoderConfig = read_manifest(self.directories["fp32"]).config
        self._engines: dict[tuple[str, int], EngineReasoner] = {}

    def engine(self, dtype: str, threads: int) -> EngineReasoner:
        if (dtype, threads) not in self._engines:
            self._engines[dtype, threads] = load_engine(
                self.directories[dtype], threads, max_batch_tokens=MAX_BATCH_TOKENS
            )
        return self._engines[dtype, threads]


class Points:
    """Measures a point and appends its rows."""

    def __init__(self, seconds: float, model: str, out: str) -> None:
        self._seconds = seconds
        self._model = model
        self._out = out

    def length(self, models: Models, tokens: int, threads: int, benchmark: str = "scaling: length") -> None:
        torch.set_num_threads(threads)
        vocabulary = models.config.vocabulary
        prompt = np.random.default_rng(tokens).integers(4, vocabulary, tokens).astype(np.int32)
        made = {BASELINE: padded(whole_forward(models.model), "fp32", ENGINES["fp32"])}
        for dtype, least in ENGINES.items():
            made[f"rgalign {dtype}"] = Variant(engine_forward(models.engine(dtype, threads)), dtype, least, pruned=True)
        # Prompts of chance are out of what 8 bits were chosen for: only float32 must agree to the last digits.
        made = {name: one_of(variant) for name, variant in made.items()}
        cosines = require_near(made, [prompt], BASELINE)
        calls = {name: (lambda variant=variant: variant.embed([prompt])) for name, variant in made.items()}
        rows = []
        for name, seconds in timed(calls, self._seconds).items():
            variant = made[name]
            work = prefill_gflop(models.config, [tokens], 0, tokens, pruned=variant.pruned)
            rows.append(
                row(
                    benchmark, variant=name, dtype=variant.dtype, model=self._model, T=tokens, threads=threads,
                    calls=len(seconds), call_ms=spread([each * 1e3 for each in seconds], 3), gflop=round(work, 4),
                    gflop_per_s=spread([work / each for each in seconds], 2),
                    weight_bytes=linear_weights(models.config) * WEIGHT_BYTES[variant.dtype],
                    cosine=cosines[name]["least"],
                )
            )  # fmt: skip
        self._record(rows, f"{tokens} tokens, {threads} thread(s)")

    def batch(self, models: Models, prompts: int, threads: int) -> None:
        torch.set_num_threads(threads)
        load = workload(models.tokenizer, "paper", max(prompts, 2))
        batch = list(load.token_ids[:prompts])
        made = dict(with_transformers(models.model, load))
        for dtype, least in ENGINES.items():
            embed = engine_forward(models.engine(dtype, threads), load.prefix_ids)
            made[f"rgalign {dtype}"] = Variant(embed, dtype, least, pruned=True)
        require_near(made, batch[:2], BASELINE)
        grouped = {
            name: variant if variant.forward is None else padded(
                variant.forward, variant.dtype, variant.least_cosine, min(16, prompts),
                reuses_prefix=variant.reuses_prefix,
            )
            for name, variant in made.items()
        }  # fmt: skip
        calls = {name: (lambda variant=variant: variant.embed(batch)) for name, variant in grouped.items()}
        tokens = sum(map(len, batch))
        rows = [
            row(
                "scaling: batch", variant=name, dtype=made[name].dtype, model=self._model, template="paper", B=prompts,
                threads=threads, prefix_tokens=load.prefix_length, own_tokens=tokens,
                computed_tokens=computed_tokens(batch, MAX_BATCH_TOKENS), calls=len(seconds),
                call_ms=spread([each * 1e3 for each in seconds], 3),
                prompts_per_s=spread([prompts / each for each in seconds], 2),
            )
            for name, seconds in timed(calls, self._seconds).items()
        ]  # fmt: skip
        self._record(rows, f"{prompts} prompts")

    def catalogue(self, size: int, threads: int, benchmark: str = "scaling: catalogue") -> None:
        need, free = size * DIM * BYTES_A_VALUE, free_bytes()
        if need > free:
            console.print(f"{size:,} vectors are left out: they take {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
            return
        torch.set_num_threads(threads)
        rng = np.random.default_rng(size)
        catalogue = unit(rng.standard_normal((size, DIM), dtype=np.float32))
        queries = unit(rng.standard_normal((CHECKED_SESSIONS, DIM), dtype=np.float32))
        found = scans(catalogue, threads)
        for name, find in found.items():
            share = recall(find(queries), queries, catalogue)
            if share < 1:
                raise AssertionError(f"{name} found {share:.4f} of the best rows of {size:,}")
        calls = {name: (lambda find=find: find(queries[:1])) for name, find in found.items()}
        rows = [
            row(benchmark, variant=name, N=size, D=DIM, B=1, k=K, threads=threads, calls=len(seconds),
                call_us=spread([each * 1e6 for each in seconds], 2))
            for name, seconds in timed(calls, self._seconds).items()
        ]  # fmt: skip
        self._record(rows, f"{size:,} vectors, {threads} thread(s)")

    def _record(self, rows: Sequence[dict[str, Any]], where: str) -> None:
        path = append(self._out, rows)
        for each in rows:
            console.print(f"{each['benchmark']}, {where}, {each['variant']}:", each.get("call_ms") or each["call_us"])
        console.print(f"appended to {path}")


def whole_forward(model: Any) -> Callable[[Any, Any], Matrix]:
    decoder = model.get_decoder()

    @torch.inference_mode()
    def forward(ids: Any, last: Any) -> Matrix:
        states = decoder(input_ids=torch.from_numpy(ids), use_cache=False).last_hidden_state
        found: Matrix = states[torch.arange(len(ids)), torch.from_numpy(last)].numpy()
        return found

    return forward


def engine_forward(reasoner: EngineReasoner, prefix: Sequence[int] = ()) -> Callable[[Sequence[TokenIds]], Matrix]:
    def embed(prompts: Sequence[TokenIds]) -> Matrix:
        states: Matrix = reasoner.embed(prompts, prefix_ids=prefix).numpy()
        return states

    return embed


def one_of(variant: Variant) -> Variant:
    """The variant as it may be held to random prompts: 8-bit activations may be further off than on words."""
    least = variant.least_cosine if variant.dtype == "fp32" else 0.9
    return Variant(variant.embed, variant.dtype, least, variant.reuses_prefix, variant.pruned, variant.forward, 1)


def scans(catalogue: Matrix, threads: int) -> dict[str, Callable[[Matrix], Any]]:
    index, tensor = CpuIndex(catalogue, int8=True), torch.from_numpy(catalogue)

    def ours(scan: Scan) -> Callable[[Matrix], Any]:
        limit = None if threads >= len(os.sched_getaffinity(0)) else threads

        def find(queries: Matrix) -> Any:
            omega = np.ones(len(queries), np.float32)
            return cpu_score(index, queries, None, None, None, omega, K, num_threads=limit, scan=scan).rows

        return find

    @torch.inference_mode()
    def with_torch(queries: Matrix) -> Any:
        return (torch.from_numpy(queries) @ tensor.T).topk(K).indices.numpy()

    def with_numpy(queries: Matrix) -> Any:
        scores = queries @ catalogue.T
        return np.argpartition(-scores, K - 1, axis=1)[:, :K]

    return {"rgalign int8": ours("int8"), "rgalign fp32": ours("fp32"), "torch": with_torch, "numpy": with_numpy}


def linear_weights(config: DecoderConfig) -> int:
    """Weights that a forward pass multiplies: all but the embedding table."""
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return config.num_layers * config.hidden * (2 * queries + 2 * keys + 3 * config.intermediate)


def free_bytes() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


if __name__ == "__main__":
    main()
