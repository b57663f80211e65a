"""Compiles the scoring kernels for a GPU that is not there and reads what the binaries use.

    python -m rgalign.bench.gpu.compile_only [--arch 80 90 100] [--index int8 ...]

One JSON line a kernel: registers a thread, bytes spilled to local memory, shared memory a program, and how many
asynchronous copies (cp.async or TMA) and tensor-core instructions the code holds. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rgalign.kernels import project_latents, project_score_topk
from rgalign.kernels.scoring_plan import plan, tile_rows

DIM, HIDDEN, K = 128, 2560, 3
STORED = {"float32": ("*fp32", 4), "float16": ("*fp16", 2), "bfloat16": ("*bf16", 2), "int8": ("*i8", 1)}
ARITHMETIC = {"float32": "tf32x3", "float16": "float16", "bfloat16": "bfloat16", "int8": "float16"}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def kernels(
    stored: str, num_sessions: int, num_rows: int, arch: int
) -> Iterator[tuple[str, Any, dict[str, Any], dict[str, Any], dict[str, int]]]:
    """Name, function, pointer and scalar types, constants and options, as ``launch`` would give them on an H200."""
    pointer, itemsize = STORED[stored]
    cut = plan(num_sessions, num_rows, DIM, HIDDEN, K, itemsize, 132, tile_rows(arch))
    options = {"num_warps": cut.num_warps, "num_stages": cut.num_stages}
    shape = {"D": DIM, "K": K, "BLOCK_D": cut.block_d, "HAS_QUERY": True, "HAS_SCALES": stored == "int8"}
    scan = {
        "K_PAD": triton.next_power_of_2(K),
        "BLOCK_B": cut.block_b,
        "BLOCK_N": cut.block_n,
        "HAS_FILTERS": True,
        "ARITHMETIC": ARITHMETIC[stored],
    }
    tower = {"H": HIDDEN, "HAS_BIAS": True, "HAS_NORM": True, "PRECISION": "tf32x3"}
    types = {
        "vectors_ptr": pointer,
        "latents_ptr": "*bf16",
        "weight_ptr": "*fp32",
        "norm_ptr": "*bf16",
        "norm_eps": "fp32",
    }
    yield "scan", project_score_topk._scan_kernel, types, {**shape, **scan}, options
    yield "merge", project_score_topk._merge_kernel, types, {**shape, "BLOCK_M": 1024}, {"num_warps": 2}
    small = plan(num_sessions, 100, DIM, 64, K, itemsize, 132, tile_rows(arch))
    one = {
        **shape,
        **scan,
        **tower,
        "BLOCK_B": small.block_b,
        "BLOCK_N": small.block_n,
        "BLOCK_H": project_latents.BLOCK_H,
    }
    options = {"num_warps": small.num_warps, "num_stages": small.num_stages}
    yield "one launch", project_score_topk._one_launch_kernel, types, one, options
    for name, block_b, block_d, block_h in (
        ("project one", 1, 2, 1024),
        ("project many", 16, 16, project_latents.BLOCK_H),
    ):
        blocks = {"D": DIM, "BLOCK_B": block_b, "BLOCK_D": block_d, "BLOCK_H": block_h}
        yield name, project_latents._project_kernel, types, {**blocks, **tower}, {"num_warps": 4}


def compiled(
    function: Any, types: dict[str, str], constants: dict[str, Any], options: dict[str, int], arch: int
) -> dict[str, int]:
    """What the binary of one kernel uses."""
    known = {"list_rows_ptr": "*i32", "filters_ptr": "*i32", "filter_of_ptr": "*i32", "rows_ptr": "*i64", **types}
    signature = {
        name: "constexpr" if name in constants else known.get(name, "*fp32" if name.endswith("_ptr") else "i32")
        for name in function.arg_names
    }
    # torch's allocations are aligned; without saying so, registers are inflated and asynchronous copies vanish.
    aligned = {(place,): [["tt.divisibility", 16]] for place, kind in enumerate(signature.values()) if kind[0] == "*"}
    source = ASTSource(function, signature, constants, aligned)
    kernel = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True)
    printed = usage.stdout + usage.stderr
    ptx = kernel.asm["ptx"]
    return {
        "registers": int(re.findall(r"REG:(\d+)", printed)[0]),
        "spilled_bytes": int(re.findall(r"STACK:(\d+)", printed)[0]) + int(re.findall(r"LOCAL:(\d+)", printed)[0]),
        "shared_bytes": kernel.metadata.shared,
        "async_copies": len(re.findall(r"cp\.async(?:\.c[ag]|\.bulk\.tensor)", ptx)),
        "tensor_core_instructions": len(re.findall(r"wgmma\.mma_async|mma\.sync|tcgen05\.mma", ptx)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", type=int, nargs="*", default=[80, 90, 100])
    parser.add_argument("--index", nargs="*", default=list(STORED), choices=list(STORED))
    parser.add_argument("--kernel", nargs="*", help="names; default: all")
    parser.add_argument("--sessions", type=int, default=64)
    parser.add_argument("--intents", type=int, default=1_000_000)
    arguments = parser.parse_args()
    for arch in arguments.arch:
        for stored in arguments.index:
            for name, function, types, constants, options in kernels(
                stored, arguments.sessions, arguments.intents, arch
            ):
                if not arguments.kernel or name in arguments.kernel:
                    usage = compiled(function, types, constants, options, arch)
                    print(
                        json.dumps(
                            {"kernel": name, "index": stored, "arch": arch, **usage, "triton": triton.__version__}
                        ),
                        flush=True,
                    )


if __name__ == "__main__":
    main()
