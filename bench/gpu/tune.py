"""The fastest tile for each W8A8 product of Qwen3-4B's layers, measured: a table for kernels/int8_gemm_tiles.json.

    python -m rgalign.bench.gpu.tune --out DIR [--seconds 60] [--dry]      (bench/gpu/run.sh)

Of the candidates that the model expects the least of, EACH are timed for every shape and bucket, the buckets of the
benchmark first; a sum that differs in one bit from another tile's is an error. DIR/int8_gemm_tiles.json is the
committed table with what was measured, so it may take that table's place; ``measured_buckets`` says which were.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rgalign.bench.gpu.check import kernels_of
from rgalign.bench.gpu.decoders import QWEN3_4B, TINY
from rgalign.bench.gpu.measure import in_graph, microseconds
from rgalign.kernels.int8_gemm import launch, workspace_size
from rgalign.kernels.int8_gemm_plan import TABLE, Tile, candidates, modelled_seconds
from rgalign.reasoner.engine.decoder_config import DecoderConfig

BUCKETS = (192, 384, 2048, 1024, 768, 64, 128, 256, 320, 512, 1536)
EACH = 8
LAYERS = 6  # weights that take turns, so that none is in the cache
PROCESSES = 12  # that compile


@dataclass(frozen=True)
class Product:
    """[tokens, k] codes by [n, k] weights; ``add``: to the residual stream."""

    n: int
    k: int
    add: bool

    @property
    def name(self) -> str:
        return f"{self.n}x{self.k}"

    def tiles(self, tokens: int, num_sms: int, count: int) -> list[Tile]:
        """The ``count`` that the model expects to be fastest."""
        found = candidates(tokens, self.n, self.k)
        return sorted(found, key=lambda tile: modelled_seconds(tile, tokens, self.n, self.k, num_sms))[:count]


def products_of(config: DecoderConfig) -> list[Product]:
    queries, keys = config.num_heads * config.head_dim, 2 * config.num_kv_heads * config.head_dim
    return [
        Product(queries + keys, config.hidden, add=False),
        Product(config.hidden, queries, add=True),
        Product(2 * config.intermediate, config.hidden, add=False),
        Product(config.hidden, config.intermediate, add=True),
    ]


class Operands:
    """Of one product at one number of tokens."""

    def __init__(self, product: Product, tokens: int, device: str, layers: int) -> None:
        g = torch.Generator(device).manual_seed(6)

        def codes(rows: int) -> Tensor:
            return torch.randint(-127, 128, (rows, product.k), device=device, generator=g, dtype=torch.int8)

        self.product, self.tokens, self.device = product, tokens, device
        self.codes, self.weights = codes(tokens), [codes(product.n) for _ in range(layers)]
        self.row_scales = torch.rand(tokens, device=device, generator=g) / product.k
        self.channel_scales = torch.rand(product.n, device=device, generator=g)

    def call(self, tile: Tile) -> Callable[[], Tensor]:
        """A product with each weight in turn; returns the last one's."""
        dtype = torch.float32 if self.product.add else torch.bfloat16
        out = torch.zeros(self.tokens, self.product.n, dtype=dtype, device=self.device)
        size = workspace_size(tile.num_splits, self.tokens, self.product.n) if tile.num_splits > 1 else 0
        workspace = torch.zeros(size, dtype=torch.int32, device=self.device)
        scales = (self.row_scales, self.channel_scales)

        def run() -> Tensor:
            for weight in self.weights:
                launch(out, self.codes, scales[0], weight, scales[1], None, workspace, self.product.add, tile)
            return out

        return run


def compile_tile(product: Product, tile: Tile) -> None:
    """In a process of its own: the binary is then in Triton's cache on disk. Tokens at multiples of 16 share it."""
    Operands(product, 64, "cuda", 1).call(tile)()


def fastest(product: Product, tokens: int, device: str, tiles: list[Tile]) -> tuple[Tile, dict[str, Any]]:
    """And what was measured of it and of the others, in microseconds a product.

    Raises:
        SystemExit: two tiles with other sums.
    """
    layers = LAYERS if device == "cuda" else 1
    operands = Operands(product, tokens, device, layers)
    calls = {tile: operands.call(tile) for tile in tiles}
    expected = calls[tiles[0]]().clone()
    for tile, call in calls.items():
        if tile != tiles[0] and not torch.equal(call(), expected):
            raise SystemExit(f"wrong: {product} of {tokens} tokens: {tile} has other bits than {tiles[0]}")
    timed = {str(index): in_graph(call) if device == "cuda" else call for index, call in enumerate(calls.values())}
    times = {tiles[int(index)]: each["median"] / layers for index, each in microseconds(timed, device).items()}
    best = min(times, key=lambda tile: times[tile])
    return best, {"us": round(times[best], 2), "modelled_choice_us": round(times[tiles[0]], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60, help="no further bucket is begun after this long")
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    limit = time.monotonic() + arguments.seconds
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not arguments.dry:
        raise SystemExit("no GPU: only --dry runs here")
    gpu, num_sms = "a dry run", 132
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        gpu, num_sms = properties.name, properties.multi_processor_count
    config, buckets, count = (TINY, (16,), 2) if arguments.dry else (QWEN3_4B, BUCKETS, EACH)
    products = products_of(config)
    if device == "cuda":
        wanted = {(each, tile) for each in products for size in buckets for tile in each.tiles(size, num_sms, count)}
        spawn = multiprocessing.get_context("spawn")  # a child of a process with a CUDA context cannot use it
        with ProcessPoolExecutor(min(PROCESSES, os.cpu_count() or 1), mp_context=spawn) as pool:
            list(pool.map(compile_tile, *zip(*wanted, strict=True)))
        print(f"{len(wanted)} binaries, {limit - time.monotonic():.0f} s left", flush=True)
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    entry = table["gpus"].setdefault(gpu, {"source": "model", "tiles": {}})
    measured: list[int] = []
    with kernels_of(device):
        for bucket in buckets:
            if time.monotonic() > limit:
                break
            for product in products:
                best, found = fastest(product, bucket, device, product.tiles(bucket, num_sms, count))
                entry["tiles"].setdefault(product.name, {})[str(bucket)] = list(astuple(best))
                print(product.name, bucket, list(astuple(best)), found, flush=True)
            measured.append(bucket)
            entry |= {"source": "measured", "measured_buckets": sorted(measured)}
            path = arguments.out / "int8_gemm_tiles.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
