"""What the reasoner engine's compiled kernels use on GPUs that are not here: registers, spills, shared memory."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed (the extra `gpu`)")

from rgalign.bench.gpu.engine_binaries import COMMITTED, grown
from rgalign.kernels.int8_gemm_plan import MAX_SPLIT_COLUMNS, TILES

SHARED_BYTES = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
ROWS = {f"{name} {codes}" for name in ("add_norm", "swiglu", "quantize_rows") for codes in ("int8", "fp8")}
ROWS |= {"qk_norm_rope"}


@pytest.mark.parametrize("arch", SHARED_BYTES)
def test_the_binaries_fit_the_gpu(arch: int) -> None:
    """Every tile of the table on an H200's architecture; elsewhere the two widest products and attention."""
    split = {
        f"gemm {tile.block_m}x{tile.block_n}x{tile.block_k} split"
        for tile in TILES
        if tile.block_n <= MAX_SPLIT_COLUMNS
    }
    wanted = {"gemm 128x256x64", "gemm 128x128x128 split", "attention"}
    if arch == 90:
        wanted = ROWS | split | {"gemm 128x256x64", "attention", "attention d64", "attention last"}
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "rgalign.bench.gpu.engine_binaries", "--arch", str(arch), "--kernel", *wanted]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["kernel"] for row in rows} == wanted
    committed = json.loads(COMMITTED.read_text(encoding="utf-8"))
    if rows[0]["triton"] == committed["triton"]:
        assert [line for row in rows for line in grown(f"{row['kernel']}, sm_{arch}", row, committed)] == []
    for row in rows:
        print(row)
        assert row["spilled_bytes"] == 0, row
        assert row["shared_bytes"] <= SHARED_BYTES[arch], row
        assert 0 < row["registers"] <= 255
        if row["kernel"] not in ROWS:
            assert row["async_copies"] > 0, "the next tiles are not loaded ahead"
            assert row["tensor_core_instructions"] > 0


def test_what_has_grown_is_named() -> None:
    committed = {"kernels": {"a, sm_90": {"registers": 100, "spilled_bytes": 0, "shared_bytes": 1_024}}}
    assert grown("a, sm_90", {"registers": 108, "spilled_bytes": 0, "shared_bytes": 512}, committed) == []
    worse = {"registers": 109, "spilled_bytes": 8, "shared_bytes": 1_025}
    assert grown("a, sm_90", worse, committed) == [
        "a, sm_90: 109 registers, committed 100",
        "a, sm_90: 8 spilled_bytes, committed 0",
        "a, sm_90: 1025 shared_bytes, committed 1024",
    ]
    assert grown("b, sm_90", worse, committed) == ["b, sm_90: not in the committed table"]
