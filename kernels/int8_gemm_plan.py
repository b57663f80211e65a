"""How a W8A8 product is cut into programs: a tile, and in how many parts the inner dimension is summed.

``int8_gemm_tiles.json`` holds what was chosen per GPU, weight shape and token bucket; a shape that is not in it gets
the best of TILES by the model below. Sums are exact int32, so no choice changes a bit of the result.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
import triton

TABLE = Path(__file__).with_name("int8_gemm_tiles.json")


@dataclass(frozen=True)
class Tile:
    """Rows (tokens), columns (output channels) and depth of a program's block; parts of the inner dimension."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    num_splits: int = 1

    def programs(self, num_rows: int, num_columns: int) -> int:
        return int(triton.cdiv(num_rows, self.block_m) * triton.cdiv(num_columns, self.block_n))


TILES = (
    Tile(16, 64, 256, 4, 4),
    Tile(32, 64, 256, 4, 4),
    Tile(64, 64, 128, 4, 4),
    Tile(64, 128, 128, 4, 4),
    Tile(128, 128, 128, 8, 4),
    Tile(128, 256, 64, 8, 4),
)
SMALL = Tile(16, 32, 32, 4, 2)  # where there is no GPU
SPLITS = (1, 2, 3, 4, 6, 8)
MAX_PROGRAMS = 4096  # of a split product: each has a counter in the workspace
MAX_SPLIT_COLUMNS = 128  # a wider tile's sums and the others' partial sums do not fit the registers together

# An H200's, from serving.md A and B: share of 1979 TOPS a multiprocessor sustains in one block by the rows of a tile
# (below 64 rows mma.sync, from 64 wgmma), bytes a second from L2 and for the partial sums, and what a program costs.
SUSTAINED_OPS = {16: 3e12, 32: 4.5e12, 64: 8e12, 128: 1.05e13}
LOADED_BYTES = 4.2e10
PARTIAL_BYTES = 3e12
STARTED_SECONDS = 1.5e-6


def modelled_seconds(tile: Tile, num_rows: int, num_columns: int, depth: int, num_sms: int) -> float:
    """Expected time of one product of [num_rows, depth] codes and [num_columns, depth] weights."""
    waves = triton.cdiv(tile.programs(num_rows, num_columns) * tile.num_splits, num_sms)
    steps = triton.cdiv(triton.cdiv(depth, tile.block_k), tile.num_splits)
    compute = 2 * tile.block_m * tile.block_n * tile.block_k / SUSTAINED_OPS[tile.block_m]
    load = (tile.block_m + tile.block_n) * tile.block_k / LOADED_BYTES
    partial = 0 if tile.num_splits == 1 else 8 * tile.num_splits * num_rows * num_columns / PARTIAL_BYTES
    return float(waves * (steps * max(compute, load) + STARTED_SECONDS) + partial)


def candidates(num_rows: int, num_columns: int, depth: int) -> list[Tile]:
    """All that may be tried for a product, for the model and for tuning on a GPU."""
    found = []
    for tile in TILES:
        for splits in SPLITS:
            fits = tile.block_n <= MAX_SPLIT_COLUMNS and tile.programs(num_rows, num_columns) <= MAX_PROGRAMS
            if (splits == 1 or fits) and splits <= triton.cdiv(depth, tile.block_k):
                found.append(Tile(**{**asdict(tile), "num_splits": splits}))
    return found


@cache
def modelled_tile(num_rows: int, num_columns: int, depth: int, num_sms: int) -> Tile:
    return min(
        candidates(num_rows, num_columns, depth),
        key=lambda tile: modelled_seconds(tile, num_rows, num_columns, depth, num_sms),
    )


@cache
def _table() -> dict[str, dict[str, dict[int, Tile]]]:
    """GPU's name -> "NxK" -> token bucket -> tile."""
    written = json.loads(TABLE.read_text(encoding="utf-8"))["gpus"]
    return {
        gpu: {
            shape: {int(bucket): Tile(*values) for bucket, values in rows.items()}
            for shape, rows in entry["tiles"].items()
        }
        for gpu, entry in written.items()
    }


def tile_for(num_rows: int, num_columns: int, depth: int, gpu: str, num_sms: int) -> Tile:
    """The table's tile for the smallest bucket that holds ``num_rows``, else the model's.

    Args:
        gpu: name as torch gives it; num_sms: its multiprocessors.
    """
    buckets = _table().get(gpu, {}).get(f"{num_columns}x{depth}", {})
    fitting = [bucket for bucket in buckets if bucket >= num_rows]
    return buckets[min(fitting)] if fitting else modelled_tile(num_rows, num_columns, depth, num_sms)


@cache
def device_of(index: int) -> tuple[str, int]:
    """Name and multiprocessors of a CUDA device."""
    properties = torch.cuda.get_device_properties(index)
    return properties.name, properties.multi_processor_count


def tile_on(device: torch.device, num_rows: int, num_columns: int, depth: int) -> Tile:
    """What a product on ``device`` is cut into; without a GPU small tiles, and two parts where there are two."""
    if device.type == "cuda":
        return tile_for(num_rows, num_columns, depth, *device_of(device.index or 0))
    return Tile(**{**asdict(SMALL), "num_splits": min(2, triton.cdiv(depth, SMALL.block_k))})
