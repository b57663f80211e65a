"""Prefill of Qwen3-4B's true shapes with random weights: ours in each type beside plain torch, one prompt and many.

    python -m rgalign.bench.gpu.engine --out DIR [--seconds 200] [--tiles FILE] [--dry]      (bench/gpu/run.sh)

Rows in DIR/engine.jsonl: ``gpu ceilings`` (copy, and the libraries' bf16, int8 and fp8 products of large matrices),
then ``gpu prefill``, each shape's ways timed in turn:

``torch eager bf16``                     the plain forward of decoders.py, as transformers has it; with its Python
``torch eager bf16, in a graph``         the same captured: the device's time alone
``torch.compile bf16, in a graph``       each layer compiled for the shape, then captured
``rgalign bf16 | int8 | fp8``            ours, the graph of a bucket
``rgalign ..., from ids to states``      ours with packing, both copies and the wait

States are compared with the plain forward's before anything is timed. ``--dry``: tiny sizes, in Triton's interpreter
where there is no GPU; its times mean nothing and its rows say so.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rgalign.bench.gpu.check import dtypes, kernels_of, prompts_of, require_alike
from rgalign.bench.gpu.decoders import QWEN3_4B, TINY, KeyValue, PlainDecoder, engine_decoder, random_ends
from rgalign.bench.gpu.measure import (
    Rows,
    copy_bandwidth,
    gpu_state,
    has_fp8,
    in_graph,
    matrix_ceilings,
    microseconds,
    use_tiles,
)
from rgalign.bench.rows import row
from rgalign.reasoner.engine.cuda.decoder import Decoder
from rgalign.reasoner.engine.cuda.matrix import CudaDtype
from rgalign.reasoner.engine.cuda.pack import Ints
from rgalign.reasoner.engine.cuda.runner import Runner
from rgalign.reasoner.engine.decoder_config import DecoderConfig

EDGE = 64  # a bucket ends at a multiple
Calls = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Shape:
    """``batch`` prompts of ``tokens`` each behind a prefix whose keys and values are there."""

    batch: int
    tokens: int
    prefix: int

    @property
    def bucket(self) -> int:
        return -(-self.batch * self.tokens // EDGE) * EDGE


# The two of issue 5, then each with more prompts until the GPU is full.
SHAPES = (
    Shape(1, 170, 180),
    Shape(1, 350, 0),
    *(Shape(batch, 170, 180) for batch in (12, 4, 24, 48)),
    *(Shape(batch, 350, 0) for batch in (6, 12, 24)),
)
COMPILED = frozenset({Shape(1, 170, 180), Shape(1, 350, 0), Shape(12, 170, 180), Shape(6, 350, 0)})
DRY_SHAPES = (Shape(1, 9, 5), Shape(2, 6, 0))


def operations(config: DecoderConfig, shape: Shape) -> int:
    """Of the matrix products that a forward needs: the last layer's only for keys, values and each last token."""
    queries, keys = config.num_heads * config.head_dim, 2 * config.num_kv_heads * config.head_dim
    mlp = 3 * config.hidden * config.intermediate
    full = config.hidden * (2 * queries + keys) + mlp
    last = config.hidden * 2 * queries + mlp  # of a last token
    tokens = shape.batch * shape.tokens
    dense = (config.num_layers - 1) * tokens * full + tokens * config.hidden * keys + shape.batch * last
    seen = shape.prefix + (shape.tokens + 1) / 2  # keys of a query, on average
    attended = (config.num_layers - 1) * tokens * seen + shape.batch * (shape.prefix + shape.tokens)
    return int(2 * dense + 4 * queries * attended)


@dataclass(frozen=True)
class Given:
    """What all ways share."""

    config: DecoderConfig
    device: str
    plain: PlainDecoder
    decoders: dict[CudaDtype, Decoder]

    @classmethod
    def make(cls, config: DecoderConfig, device: str) -> Given:
        ends = random_ends(config, device)
        decoders = {dtype: engine_decoder(config, ends, dtype) for dtype in dtypes(device)}
        return cls(config, device, PlainDecoder(config, ends, torch.bfloat16), decoders)


def runner_of(decoder: Decoder, shape: Shape, prefix: Ints) -> Runner:
    """With the one graph that the shape needs."""
    runner = Runner(decoder, token_buckets=(shape.bucket,))
    runner.set_prefix(prefix)
    runner.warm_up()
    return runner


def plain_ways(given: Given, ids: Tensor, cache: list[KeyValue] | None, compiled: bool) -> Calls:
    def forward() -> Tensor:
        return given.plain.forward(ids, cache)

    calls: Calls = {"torch eager bf16": forward}
    if given.device == "cuda":
        calls["torch eager bf16, in a graph"] = in_graph(forward)
        if compiled:
            eager = given.plain.layer
            given.plain.compile()
            calls["torch.compile bf16, in a graph"] = in_graph(forward)
            given.plain.layer = eager
    return calls


def ways(given: Given, shape: Shape) -> tuple[Calls, dict[CudaDtype, float]]:
    """What is to be timed, and each type's cosine with the plain states.

    Raises:
        SystemExit: too small a one.
    """
    prompts = prompts_of([shape.tokens] * shape.batch, given.config.vocabulary, 7)
    (prefix,) = prompts_of([shape.prefix], given.config.vocabulary, 8)
    ids = torch.stack([torch.from_numpy(each) for each in prompts]).to(given.device)
    cache = given.plain.prefix(torch.from_numpy(prefix).to(given.device)) if shape.prefix else None
    expected = given.plain.forward(ids, cache).float().cpu()
    calls = plain_ways(given, ids, cache, shape in COMPILED)
    cosines: dict[CudaDtype, float] = {}
    for dtype, decoder in given.decoders.items():
        runner = runner_of(decoder, shape, prefix)
        whole = _from_ids(runner, prompts)
        cosines[dtype] = require_alike(f"{dtype}, {shape}", whole(), expected, dtype)
        calls[f"rgalign {dtype}"] = whole
        if runner.buckets:
            calls[f"rgalign {dtype}"] = runner.buckets[0].replay
            calls[f"rgalign {dtype}, from ids to states"] = whole
    return calls, cosines


def _from_ids(runner: Runner, prompts: list[Ints]) -> Callable[[], Tensor]:
    return lambda: runner.run(prompts).states


def measure(given: Given, shape: Shape, ceilings: dict[str, float], dry: bool) -> list[dict[str, Any]]:
    calls, cosines = ways(given, shape)
    count = operations(given.config, shape)
    found = microseconds(calls, given.device)
    state = gpu_state()
    rows = []
    for variant, times in found.items():
        dtype: CudaDtype = next((each for each in given.decoders if f" {each}" in variant), "bf16")
        per_second = count / (times["median"] * 1e-6)
        rows.append(
            row(
                "gpu prefill",
                variant=variant,
                model="Qwen3-4B shapes, random weights" if not dry else "tiny, random weights",
                dtype=dtype,
                batch=shape.batch,
                tokens=shape.tokens,
                prefix_tokens=shape.prefix,
                bucket_tokens=shape.bucket if variant.startswith("rgalign") else None,
                call_us=times,
                prompts_per_s=round(shape.batch / (times["median"] * 1e-6), 1),
                tera_operations_per_s=round(per_second / 1e12, 2),
                share_of_ceiling=round(per_second / ceilings[dtype], 4),
                cosine=round(cosines[dtype], 6) if variant.startswith("rgalign") else None,
                gpu_state=state,
                dry=dry,
            )
        )
    return rows


def measure_ceilings(device: str, dry: bool) -> dict[str, float]:
    """Bytes a second of a copy, and operations a second by type."""
    copy = copy_bandwidth(device, 1 << (20 if dry else 32))
    return {"copy": copy, **matrix_ceilings(device, 64 if dry else 8192, has_fp8(device))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=200, help="no further shape is begun after this long")
    parser.add_argument("--tiles", type=Path, help="of gpu.tune, in place of the committed table")
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    began = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not arguments.dry:
        raise SystemExit("no GPU: only --dry runs here")
    use_tiles(arguments.tiles)
    rows = Rows(arguments.out / "engine.jsonl")
    ceilings = measure_ceilings(device, arguments.dry)
    rows.add(row("gpu ceilings", per_second={name: round(value) for name, value in ceilings.items()},
                 gpu_state=gpu_state(), dry=arguments.dry), "per_second")  # fmt: skip
    with kernels_of(device):
        given = Given.make(TINY if arguments.dry else QWEN3_4B, device)
        print(f"weights after {time.monotonic() - began:.0f} s", flush=True)
        for shape in DRY_SHAPES if arguments.dry else SHAPES:
            if time.monotonic() - began > arguments.seconds:
                print(f"out of time before {shape}", flush=True)
                break
            for each in measure(given, shape, ceilings, arguments.dry):
                rows.add(each, "batch", "tokens", "prefix_tokens", "variant", "call_us", "prompts_per_s")
            if device == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
