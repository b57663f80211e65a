"""The engine equals the definition, and a prompt's bits depend on nothing but the prompt."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rgalign.errors import ConfigError, DataError
from rgalign.reasoner.engine.artifact import INSTRUCTION_SETS, load_model, read_manifest
from rgalign.reasoner.engine.build import Calibration, build_engine
from rgalign.reasoner.engine.reasoner import EngineReasoner, load_engine
from rgalign.reasoner.hf import HFReasoner

Make = Callable[[str], tuple[Any, Path]]
Families = ["llama", "llama3 rope", "yarn rope", "linear rope, biases", "qwen2", "qwen3", "mistral"]
PREFIX = list(range(20, 61))
LENGTHS = [1, 2, 5, 6, 7, 16, 17, 63, 64, 130, 512]


def prompts() -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(1)
    rows = [rng.integers(4, 512, length).astype(np.int32) for length in LENGTHS]
    rows += [np.concatenate([rows[-2][:shared], rows[3]]) for shared in (3, 40, 41, 129)]  # a tree of beginnings
    return [*rows, rows[4].copy()]


def cosine(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(left, right, dim=-1)


def reasoner(path: Path, instructions: str) -> EngineReasoner:
    manifest = read_manifest(path)
    return EngineReasoner(load_model(path, manifest, instructions), manifest)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, checkpoint: Make) -> Callable[[str, str], Path]:
    made: dict[tuple[str, str], Path] = {}

    def make(family: str, dtype: str) -> Path:
        if (family, dtype) not in made:
            made[family, dtype] = tmp_path_factory.mktemp("engine") / "e"
            build_engine(str(checkpoint(family)[1]), made[family, dtype], dtype)
        return made[family, dtype]

    return make


@pytest.mark.parametrize("family", Families)
def test_fp32_equals_the_definition(family: str, checkpoint: Make, engine: Callable[[str, str], Path]) -> None:
    model, _ = checkpoint(family)
    rows = prompts()
    fast = load_engine(engine(family, "fp32"))
    for prefix in ([], PREFIX):
        expected = HFReasoner(model, None).embed(rows, prefix_ids=prefix)
        assert expected.std() > 0.1
        assert cosine(expected[0], expected[5]) < 0.99
        found = fast.embed(rows, prefix_ids=prefix)
        assert cosine(found, expected).min() > 0.99999
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)  # float32, sums in another order


@pytest.mark.parametrize("dtype", ["fp32", "int8", "int8a12"])
def test_a_prompts_bits_depend_on_nothing_else(dtype: str, engine: Callable[[str, str], Path]) -> None:
    rows = prompts()
    path = engine("qwen3", dtype)
    alone = torch.cat([load_engine(path).embed([row], prefix_ids=PREFIX) for row in rows])
    order = np.random.default_rng(2).permutation(len(rows))
    for threads, pack in ((1, 64), (2, 256), (3, 4096)):
        fast = load_engine(path, threads, max_batch_tokens=pack)
        whole = fast.embed([np.array([*PREFIX, *row], np.int32) for row in rows])
        assert torch.equal(whole, alone), (threads, pack)
        mixed = fast.embed([rows[i] for i in order], prefix_ids=PREFIX)
        assert torch.equal(mixed, alone[torch.from_numpy(order)]), (threads, pack)


@pytest.mark.parametrize("name", ["amx", "avx512", "avx2"])
@pytest.mark.parametrize("dtype", ["fp32", "int8", "int8a12"])
def test_every_instruction_set_gives_the_same_bits(dtype: str, name: str, engine: Callable[[str, str], Path]) -> None:
    if name not in INSTRUCTION_SETS:
        pytest.skip(f"this machine does not have {name}")
    rows = [row for row in prompts() if len(row) < 70]
    portable, other = (reasoner(engine("qwen2", dtype), each) for each in ("portable", name))
    for prefix in ([], PREFIX):
        expected = portable.embed(rows, prefix_ids=prefix)
        assert expected.std() > 0.1
        assert torch.equal(other.embed(rows, prefix_ids=prefix), expected)


def test_more_bits_are_nearer(checkpoint: Make, engine: Callable[[str, str], Path]) -> None:
    rows = prompts()
    exact = HFReasoner(checkpoint("llama")[0], None).embed(rows)
    error = {
        name: 1 - cosine(load_engine(engine("llama", name)).embed(rows), exact).mean()
        for name in ("fp32", "int8", "int8a12")
    }
    assert error["fp32"] < error["int8a12"] < error["int8"] < 0.05


def test_smoothing_keeps_the_model_and_helps_outliers(tmp_path: Path, checkpoint: Make) -> None:
    model, _ = checkpoint("llama")
    with torch.no_grad():  # a channel of the MLP's input a hundred times the others
        for layer in model.model.layers:
            layer.post_attention_layernorm.weight[7] *= 100.0
            layer.mlp.gate_proj.weight[:, 7] /= 100.0
            layer.mlp.up_proj.weight[:, 7] /= 100.0
        model.save_pretrained(tmp_path / "outlier")
        for layer in model.model.layers:
            layer.post_attention_layernorm.weight[7] /= 100.0
            layer.mlp.gate_proj.weight[:, 7] *= 100.0
            layer.mlp.up_proj.weight[:, 7] *= 100.0
    rows = prompts()
    exact = HFReasoner(model, None).embed(rows)
    ref = str(tmp_path / "outlier")
    error = {}
    for name, alpha in (("plain", None), ("smooth", 0.5)):
        build_engine(ref, tmp_path / name, "int8", Calibration(rows[:12], alpha))
        error[name] = float(1 - cosine(load_engine(tmp_path / name).embed(rows), exact).mean())
        assert (tmp_path / name / "quantization.csv").read_text().count("\n") == 3 * 4 + 1
    assert error["smooth"] < 0.5 * error["plain"]


def test_threads_share_a_reasoner_and_a_fork_computes(engine: Callable[[str, str], Path]) -> None:
    rows = prompts()
    fast = load_engine(engine("llama", "int8"), 2)
    expected = fast.embed(rows)
    wrong: list[int] = []

    def call(which: int) -> None:
        prefix = PREFIX if which % 2 else []
        if not prefix and not torch.equal(fast.embed(rows, prefix_ids=prefix), expected):
            wrong.append(which)

    callers = [threading.Thread(target=call, args=(which,)) for which in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong
    child = os.fork()
    if child == 0:  # no torch operation in here: only the engine
        code = 1
        try:
            code = 0 if np.array_equal(fast.embed(rows[:3]).numpy(), expected[:3].numpy()) else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_nothing_is_allocated_after_the_first_call(engine: Callable[[str, str], Path]) -> None:
    fast = load_engine(engine("llama", "int8"))
    fast.embed(prompts(), prefix_ids=PREFIX)
    size = fast.num_bytes
    for _ in range(3):
        fast.embed(prompts()[::-1], prefix_ids=PREFIX)
    assert fast.num_bytes == size > 0


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "at least one prompt"),
        ([np.zeros(0, np.int32)], "prompt 0: required a non-empty row"),
        ([np.array([1, 512])], "token ids in 0..511; received 1..512"),
        ([np.array([-1])], "token ids in 0..511"),
        ([np.array([0.5])], "integer token ids"),
        ([np.zeros(1025, np.int32)], "at most 1024 tokens"),
    ],
)
def test_refused_prompts(ids: list[Any], message: str, engine: Callable[[str, str], Path]) -> None:
    with pytest.raises(DataError, match=message):
        load_engine(engine("llama", "fp32")).embed(ids)


def test_refused_options(tmp_path: Path, checkpoint: Make, engine: Callable[[str, str], Path]) -> None:
    source = str(checkpoint("llama")[1])
    with pytest.raises(ConfigError, match="fp32 or bf16 or int8 or int8a12; received 'fp16'"):
        build_engine(source, tmp_path / "e", "fp16")
    build_engine(source, tmp_path / "e", "bf16")
    with pytest.raises(ConfigError, match="bf16 is for CUDA only"):
        load_engine(tmp_path / "e")
    with pytest.raises(ConfigError, match="at least 1"):
        load_engine(engine("llama", "fp32"), 0)
    with pytest.raises(ConfigError, match="instructions"):
        reasoner(engine("llama", "fp32"), "mmx")
