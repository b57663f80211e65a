"""Compiles the reasoner engine's kernels for a GPU that is not there and reads what the binaries use.

    python -m rgalign.bench.gpu.engine_binaries [--arch 80 90 100] [--kernel NAME ...]

At Qwen3-4B's shapes; one JSON line a kernel, as :mod:`rgalign.bench.gpu.compile_only` writes them. The W8A8 product
has a line for each tile that the committed table or the model may choose. TRITON_INTERPRET must not be set.
``--write`` commits to what they use (binaries.json beside this file); the suite compares with it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import triton

from rgalign.bench.gpu.compile_only import compiled
from rgalign.kernels import add_norm_quantize, int8_gemm, prefix_attention, qk_norm_rope, quantize_rows, swiglu_quantize
from rgalign.kernels.int8_gemm_plan import MAX_SPLIT_COLUMNS, TILES, Tile

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM = 2560, 9728, 32, 8, 128
QKV = (HEADS + 2 * KV_HEADS) * HEAD_DIM
COMMITTED = Path(__file__).with_name("binaries.json")
# Growth that is let pass; another compiler allocates registers otherwise, so another version's are not compared.
GUARDED = {"registers": 8, "spilled_bytes": 0, "shared_bytes": 0}
Case = tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]


def rows_of(dim: int) -> tuple[int, dict[str, int]]:
    block = triton.next_power_of_2(dim)
    return block, {"num_warps": quantize_rows.row_warps(block)}


def gemm(name: str, tile: Tile, add: bool) -> Case:
    types = {
        "codes_ptr": "*i8",
        "weight_ptr": "*i8",
        "out_ptr": "*fp32" if add else "*bf16",
        "counters_ptr": "*i32",
        "partials_ptr": "*i32",
    }
    constants = {
        "N": HIDDEN if add else QKV,
        "K": INTERMEDIATE if add else HIDDEN,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
        "NUM_SPLITS": tile.num_splits,
        "HAS_BIAS": True,
        "ADD": add,
    }
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    return name, int8_gemm._int8_gemm_kernel, types, constants, options


def attention(name: str, heads: int, kv_heads: int, dim: int, block_m: int) -> Case:
    types = dict.fromkeys(("cu_seqlens_q_ptr", "cu_seqlens_k_ptr", "tiles_ptr"), "*i32")
    types |= dict.fromkeys(("q_ptr", "kv_ptr", "prefix_ptr", "out_ptr"), "*bf16") | {"scale": "fp32"}
    constants = {
        "Q_STRIDE": (heads + 2 * kv_heads) * dim,
        "KV_STRIDE": (heads + 2 * kv_heads) * dim,
        "NUM_HEADS": heads,
        "NUM_KV_HEADS": kv_heads,
        "HEAD_DIM": dim,
        "BLOCK_M": block_m,
        "BLOCK_N": prefix_attention.BLOCK_N,
        "BLOCK_D": triton.next_power_of_2(dim),
        "UPCAST": False,
    }
    return name, prefix_attention._prefix_attention_kernel, types, constants, {"num_warps": 4, "num_stages": 2}


def cases(arch: int) -> Iterator[Case]:
    """Name, function, pointer and scalar types, constants and options, as the engine launches them."""
    coded = {"int8": "*i8"} | ({"fp8": "*fp8e4nv"} if arch >= 89 else {})
    block, warps = rows_of(HIDDEN)
    row = {"D": HIDDEN, "BLOCK_D": block, "HAS_DELTA": True}
    for name, codes in coded.items():
        types = {"delta_ptr": "*bf16", "out_ptr": codes, "eps": "fp32"}
        yield f"add_norm {name}", add_norm_quantize._add_norm_kernel, types, {**row, "QUANTIZE": True}, warps
    types = {"delta_ptr": "*bf16", "out_ptr": "*bf16", "eps": "fp32"}
    yield "add_norm bf16", add_norm_quantize._add_norm_kernel, types, {**row, "QUANTIZE": False}, warps
    block, warps = rows_of(INTERMEDIATE)
    constants: dict[str, Any] = {"INTERMEDIATE": INTERMEDIATE, "BLOCK_I": block, "QUANTIZE": True}
    for name, codes in coded.items():
        types = {"gate_up_ptr": "*bf16", "out_ptr": codes}
        yield f"swiglu {name}", swiglu_quantize._swiglu_kernel, types, constants, warps
    block, warps = rows_of(HEADS * HEAD_DIM)
    constants = {"ROW_STRIDE": HEADS * HEAD_DIM, "D": HEADS * HEAD_DIM, "BLOCK_D": block}
    for name, codes in coded.items():
        types = {"x_ptr": "*bf16", "codes_ptr": codes}
        yield f"quantize_rows {name}", quantize_rows._quantize_rows_kernel, types, constants, warps
    constants = {
        "ROW_STRIDE": QKV,
        "NUM_HEADS": HEADS,
        "NUM_KV_HEADS": KV_HEADS,
        "HEAD_DIM": HEAD_DIM,
        "BLOCK_HALF": HEAD_DIM // 2,
        "HEADS_EACH": qk_norm_rope.HEADS_EACH,
        "HAS_NORM": True,
    }
    types = {"x_ptr": "*bf16", "positions_ptr": "*i32", "eps": "fp32"}
    yield "qk_norm_rope", qk_norm_rope._qk_norm_rope_kernel, types, constants, {"num_warps": 1}
    for name, heads, kv_heads, dim in (
        ("", 32, 8, 128),
        (" d96", 32, 32, 96),
        (" d80", 32, 32, 80),
        (" d64", 9, 3, 64),
    ):
        yield attention(f"attention{name}", heads, kv_heads, dim, 64)
    yield attention("attention last", 32, 8, 128, 16)
    for tile in TILES:
        shape = f"{tile.block_m}x{tile.block_n}x{tile.block_k}"
        yield gemm(f"gemm {shape}", tile, add=False)
        if tile.block_n <= MAX_SPLIT_COLUMNS:
            yield gemm(f"gemm {shape} split", replace(tile, num_splits=2), add=True)


def grown(name: str, usage: Mapping[str, int], committed: Mapping[str, Any]) -> list[str]:
    """What of one binary is more than was committed, a line each."""
    before = committed["kernels"].get(name)
    if before is None:
        return [f"{name}: not in the committed table"]
    return [
        f"{name}: {usage[key]} {key}, committed {before[key]}"
        for key, more in GUARDED.items()
        if usage[key] > before[key] + more
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", type=int, nargs="*", default=[80, 90, 100])
    parser.add_argument("--kernel", nargs="*", help="names; default: all")
    parser.add_argument("--write", action="store_true", help=f"what they use to {COMMITTED.name}")
    arguments = parser.parse_args()
    used = {}
    for arch in arguments.arch:
        for name, function, types, constants, options in cases(arch):
            if not arguments.kernel or name in arguments.kernel:
                usage = compiled(function, types, constants, options, arch)
                used[f"{name}, sm_{arch}"] = {key: usage[key] for key in GUARDED}
                print(json.dumps({"kernel": name, "arch": arch, **usage, "triton": triton.__version__}), flush=True)
    if arguments.write:
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(each)}" for name, each in used.items())
        written = f'{{"triton": "{triton.__version__}",\n "kernels": {{\n{lines}\n}}}}\n'
        COMMITTED.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
