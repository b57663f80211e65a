"""The GPU suites at their smallest, in Triton's interpreter: what they check, and the rows that the table reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (the extra `gpu`)")

from rgalign.batcher import BatcherConfig
from rgalign.bench.gpu import check, decoders, end_to_end, engine, engine_kernels, table, tune
from rgalign.bench.gpu.decoders import QWEN3_4B, TINY, Ends
from rgalign.kernels.int8_gemm_plan import Tile
from rgalign.kernels.on_cpu import interpreted
from rgalign.reasoner.engine.cuda.decoder import Decoder
from rgalign.reasoner.engine.cuda.matrix import CudaDtype
from rgalign.reasoner.engine.cuda.runner import Ranked, Runner
from rgalign.reasoner.engine.decoder_config import DecoderConfig

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1 and no GPU"
)
ABSENT = (
    "pydantic",
    "yaml",
    "safetensors",
    "transformers",
    "tokenizers",
    "pyarrow",
    "polars",
    "rich",
    "typer",
    "scipy",
)
CEILINGS = {"copy": 1e9, "bf16": 1e9, "int8": 1e9, "fp8": 1e9}


@pytest.fixture
def in_interpreter() -> Iterator[None]:
    with interpreted():
        yield


def written(path: Path, rows: list[dict[str, Any]]) -> list[str]:
    path.write_text("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    return list(table.table(path.parent))


def test_prefill(tmp_path: Path) -> None:
    """By the kernels' definitions: the rows do not depend on it."""
    given = engine.Given.make(TINY, "cpu")
    rows = engine.measure(given, engine.Shape(2, 9, 5), CEILINGS, dry=True)
    assert [row["variant"] for row in rows] == ["torch eager bf16", "rgalign bf16", "rgalign int8", "rgalign fp8"]
    assert all(row["cosine"] > 0.95 for row in rows[1:])
    assert {row["dtype"] for row in rows} == {"bf16", "int8", "fp8"}
    printed = written(tmp_path / "engine.jsonl", rows)
    assert "2x9+5" in printed[0]
    assert len(printed) == 5


def test_other_weights_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    given = engine.Given.make(TINY, "cpu")
    monkeypatch.setattr(Runner, "run", lambda self, prompts: Ranked(torch.randn(len(prompts), TINY.hidden)))
    with pytest.raises(SystemExit, match=r"wrong: bf16, Shape\(batch=2, tokens=9, prefix=0\): cosine"):
        engine.measure(given, engine.Shape(2, 9, 0), CEILINGS, dry=True)


def test_the_check(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    packs = check.Packs((16,), ((1, 9),), 5)
    check.check_forward(TINY, packs, "cpu")
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["bf16", "int8", "fp8"]

    def turned_back(config: DecoderConfig, ends: Ends, dtype: CudaDtype) -> Decoder:
        return replace(decoders.engine_decoder(config, ends, dtype), sines=-ends.sines)

    monkeypatch.setattr(check, "engine_decoder", turned_back)
    with pytest.raises(SystemExit, match=r"wrong: bf16, \[1, 9\] tokens behind 0: cosine"):
        check.check_forward(TINY, packs, "cpu")


def test_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = list(engine_kernels.kernels(TINY, "cpu", dry=True))
    names = ["qkv", "out", "gate_up", "down", "norm", "swiglu", "quantize", "rotation", "attention behind 5"]
    assert [kernel.name for kernel in every] == names
    rows = [row for kernel in every for row in engine_kernels.measure(kernel, CEILINGS, "cpu", dry=True)]
    assert len(written(tmp_path / "kernels.jsonl", rows)) == len(rows) == 4 * 4 + 4 + 2
    given = engine_kernels.int8_gemm
    monkeypatch.setattr(engine_kernels, "int8_gemm", lambda *operands: given(*operands) * 1.001)
    with pytest.raises(SystemExit, match="wrong: W8A8 product"):
        list(engine_kernels.products(TINY, 17, "cpu"))


def test_operations_of_a_forward() -> None:
    """2 a weight and token, but for the last layer; attention beside them is little."""
    weights = 35 * 100_925_440
    found = engine.operations(QWEN3_4B, engine.Shape(1, 350, 0))
    assert 1 < found / (2 * weights * 350) < 1.05
    cached = engine.operations(QWEN3_4B, engine.Shape(1, 170, 180))
    assert 0.48 < cached / found < 0.5


def test_load(tmp_path: Path) -> None:
    """By the kernels' definitions, through the batcher core: everyone is answered, and the rows say how."""
    plan = end_to_end.Plan((64,), ((5, 6, 12),), 100, 0.2, (0.8,), 12, 60_000)
    ends = decoders.random_ends(TINY, "cpu")
    rows = list(end_to_end.measure(TINY, ends, "int8", plan, "cpu", np.inf))
    assert [row["arrivals"] for row in rows] == ["poisson", "as many as it answers", "poisson"]
    assert [row["requests"] for row in rows[:2]] == [20, 12]
    assert all(row["answered"] == row["requests"] for row in rows)
    assert all(0 < row["latency_ms"]["p50"] <= row["latency_ms"]["p99"] <= row["latency_ms"]["max"] for row in rows)
    assert rows[1]["rows_per_batch"] > 1
    printed = written(tmp_path / "end_to_end.jsonl", [{"benchmark": "gpu end to end", **row} for row in rows])
    assert "all at once" in printed[1]


def test_the_answers_are_the_request_s() -> None:
    plan = end_to_end.Plan((64,), ((5, 6, 12),), 100, 0.2, (), 6, 60_000)
    ends, head = decoders.random_ends(TINY, "cpu"), end_to_end.head_of(TINY, "cpu", 40)
    runner = Runner(decoders.engine_decoder(TINY, ends, "bf16"), token_buckets=plan.buckets, head=head)
    prompts = check.prompts_of([6, 9, 12, 7, 8, 11], TINY.vocabulary, 3)
    answers, served = end_to_end.run_load(plan, runner, prompts, np.zeros(6), 60_000)
    omega = np.full(1, 0.5, np.float32)
    for tag, ids in enumerate(prompts):
        alone = runner.run([ids], served._user[tag : tag + 1], omega).winners
        assert alone is not None
        assert answers.winners[tag] == alone.rows[0].tolist()


def test_a_runner_that_raises_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = end_to_end.Plan((64,), ((5, 6, 12),), 100, 0.2, (), 4, 60_000)
    ends, head = decoders.random_ends(TINY, "cpu"), end_to_end.head_of(TINY, "cpu", 40)
    runner = Runner(decoders.engine_decoder(TINY, ends, "bf16"), token_buckets=plan.buckets, head=head)
    monkeypatch.setattr(runner, "run", lambda *arguments, **named: 1 / 0)
    monkeypatch.setattr(end_to_end, "PATIENCE_MS", 100.0)
    with pytest.raises(SystemExit, match="wrong: the runner raised"):
        end_to_end.run_load(plan, runner, check.prompts_of([6], TINY.vocabulary, 3), np.zeros(2), 60_000)


def test_the_limits_are_the_batcher_s() -> None:
    ours = end_to_end.limits(end_to_end.PLAN)
    names = ("max_rows", "max_tokens", "max_request_tokens", "token_buckets", "max_queue", "queue_limit", "deadline_ms")
    assert BatcherConfig(**{name: ours[name] for name in names}).limits() == ours


def test_they_need_torch_triton_and_numpy_only() -> None:
    """The machine with the GPU has no more; ``_C`` is built there."""
    names = "check, tune, engine, end_to_end, engine_kernels, scoring, table"
    script = f"import sys; sys.modules |= dict.fromkeys({ABSENT}); from rgalign.bench.gpu import {names}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]


def test_tiles(tmp_path: Path, in_interpreter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    product, tiles = tune.Product(64, 64, add=True), [Tile(16, 32, 32, 4, 2), Tile(16, 64, 64, 4, 2)]
    best, found = tune.fastest(product, 16, "cpu", tiles)
    assert best in tiles
    assert 0 < found["us"] <= found["modelled_choice_us"]
    given = tune.launch

    def off_by_one(out: torch.Tensor, *operands: Any) -> None:
        given(out, *operands)
        out[0, 0] += operands[-1] == tiles[1]

    monkeypatch.setattr(tune, "launch", off_by_one)
    with pytest.raises(SystemExit, match="has other bits than"):
        tune.fastest(product, 16, "cpu", tiles)
