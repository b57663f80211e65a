"""The engine benchmark's own promises: wrong states are noticed before timing, work is counted right, rows whole."""

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from rgalign.bench import engine, engine_peers, engine_work, rows
from rgalign.bench.engine_environment import make_environment
from rgalign.bench.engine_loading import Loading
from rgalign.bench.engine_peers import Inputs, Matrix, Variant, padded
from rgalign.bench.engine_prompts import Workload, computed_tokens, workload
from rgalign.bench.engine_work import prefill_gflop
from rgalign.errors import ConfigError, ModelNotFoundError
from rgalign.reasoner.engine.artifact import INSTRUCTION_SETS
from rgalign.reasoner.engine.checkpoint import DecoderConfig, read_config
from rgalign.reasoner.pretrained import load_tokenizer

SIZES = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "head_dim": 32}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    torch.manual_seed(0)
    made = LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS, initializer_range=0.1)).eval().requires_grad_(False)
    path = tmp_path_factory.mktemp("model")
    made.save_pretrained(path)
    return made, path


def random_workload(template: str = "paper", count: int = 5) -> Workload:
    rng = np.random.default_rng(7)
    prefix, *prompts = (rng.integers(4, 128, size).astype(np.int32) for size in (9, *rng.integers(3, 20, count)))
    return Workload(template, tuple(prefix.tolist()), tuple(prompts))


def test_states_that_are_wrong_are_never_timed() -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((128, 16)).astype(np.float32)

    def right(prompts: Sequence[Any]) -> Matrix:
        return np.stack([table[ids[-1]] for ids in prompts])

    def first_token(prompts: Sequence[Any]) -> Matrix:
        return np.stack([table[ids[0]] for ids in prompts])

    prompts = list(random_workload().token_ids)
    good = {"definition": Variant(right, "fp32", 0.99999), "near": Variant(lambda p: right(p) + 0.02, "int8", 0.99)}
    found = engine.require_near(good, prompts, "definition")
    assert found["definition"] == {"mean": 1.0, "least": 1.0}
    assert 0.99 < found["near"]["least"] <= found["near"]["mean"] < 1
    for name, wrong in (("another place", first_token), ("not a number", lambda p: right(p) * np.nan)):
        with pytest.raises(AssertionError, match=f"{name}: cosine"):
            engine.require_near({**good, name: Variant(wrong, "int8", 0.9)}, prompts, "definition")


def test_groups_keep_the_order_and_the_fastest_is_taken() -> None:
    sizes: list[int] = []

    def forward(ids: Any, last: Any) -> Matrix:
        sizes.append(len(ids))
        time.sleep(0.001 if len(ids) == 4 else 0.03)
        return np.stack([ids[np.arange(len(ids)), last], last], axis=1).astype(np.float32)

    prompts = list(random_workload(count=8).token_ids)
    expected = np.array([[ids[-1], len(ids) - 1] for ids in prompts], np.float32)
    for group in (1, 3, 8):
        sizes.clear()
        np.testing.assert_array_equal(padded(forward, "fp32", 1.0, group).embed(prompts), expected)
        assert sizes == {1: [1] * 8, 3: [3, 3, 2], 8: [8]}[group]
    chosen = engine_peers.with_fastest_group(padded(forward, "fp32", 1.0), prompts)
    assert chosen.group == 4
    np.testing.assert_array_equal(chosen.embed(prompts), expected)


def test_the_work_is_what_a_loop_over_tokens_counts() -> None:
    config = DecoderConfig(3, 64, 96, 4, 2, 32, 1e-5, 1.0, False, 128, 512)
    matrices = {"qkv": 64 * (128 + 2 * 64), "out": 128 * 64, "mlp": 3 * 64 * 96}
    lengths, prefix = [5, 2], 7
    full = pruned = 0
    for layer in range(3):
        for length in lengths:
            for token in range(length):
                seen = 2 * 2 * 4 * 32 * (prefix + token + 1)  # queries times keys, probabilities times values
                whole = 2 * sum(matrices.values()) + seen
                full += whole
                only_keys = layer == 2 and token < length - 1
                pruned += 2 * 64 * 2 * 64 if only_keys else whole
    assert prefill_gflop(config, lengths, prefix, sum(lengths), pruned=False) * 1e9 == pytest.approx(full)
    assert prefill_gflop(config, lengths, prefix, sum(lengths), pruned=True) * 1e9 == pytest.approx(pruned)


def test_the_rates_of_registers() -> None:
    found = engine_work.measure_registers(1)
    if not found:
        pytest.skip("no C++ compiler, or no AVX2")
    assert found.keys() == {"fp32", "int8", "int16"} | ({"tiles"} if "amx" in INSTRUCTION_SETS else set())
    assert all(1 < rate < 1e5 for rate in found.values())  # GFLOP/s; how much it is, is the machine's affair


def test_prompts_have_the_papers_form() -> None:
    try:
        tokenizer = load_tokenizer("smollm2")
    except ModelNotFoundError as error:
        pytest.skip(str(error))
    for template, before, after in (("paper", 108, 60), ("prefix_cached", 155, 14)):
        load = workload(tokenizer, template, 16)
        own = [len(ids) for ids in load.token_ids]
        assert abs(load.prefix_length - before) < 12, template
        assert abs(min(own) - 60 - after) < 12
        assert max(own) - min(own) == 90
        ends = {tuple(ids[-3:].tolist()) for ids in load.token_ids}
        assert len(ends) == 1
        # The prompts' own beginnings are hardly shared: reuse of the prefix is nearly all that there is to reuse.
        assert computed_tokens(list(load.token_ids), 10_000) > 0.95 * sum(own)


def test_a_tiny_run_from_rows_to_plots(
    model: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "WORK", tmp_path / "work")
    monkeypatch.setattr(engine, "load_causal_lm", lambda ref: (model[0], None))
    monkeypatch.setattr(engine, "workload", lambda tokenizer, template, count: random_workload(template, count))
    monkeypatch.setattr(engine, "measure_loading", lambda directory, prefix: Loading(0.5, 110, 100))
    monkeypatch.setattr(engine, "QUICK", engine.Effort(0.01, 2, 3, 1, 4, 3, probe=True, calibrated=False))
    monkeypatch.setattr(engine_work, "SGEMM_SIDE", 32)
    monkeypatch.setattr(engine_work, "measure_registers", lambda threads: {"fp32": 60.0, "int8": 90.0})
    monkeypatch.setattr(rows, "_commit", lambda: "none")  # two runs of git a row
    out = tmp_path / "rows.jsonl"
    given = ["--quick", "--model", str(model[1]), "--batches", "1", "4", "--prompts", "5", "--threads", "1"]
    given += ["--templates", "paper", "prefix_cached", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["engine", *given])
    engine.main()
    written = [json.loads(line) for line in out.read_text().splitlines()]
    cells = [row for row in written if row["benchmark"] == "engine"]
    assert {(row["template"], row["B"]) for row in cells} == {
        (t, b) for t in ("paper", "prefix_cached") for b in (1, 4)
    }
    names = {"transformers fp32, whole prompt", "transformers fp32", "rgalign fp32", "rgalign int8a12", "rgalign int8"}
    for where in {(row["template"], row["B"]) for row in cells}:
        assert names <= {row["variant"] for row in cells if (row["template"], row["B"]) == where}
    for row in cells:
        assert row["prompt_ms"]["p20"] <= row["prompt_ms"]["median"] <= row["prompt_ms"]["p80"]
        assert row["cosine"]["least"] > 0.95
        assert row["share_of_sgemm"] > 0
        if row["variant"] == engine.BASELINE:
            assert row["speedup"] == {"median": 1.0, "p20": 1.0, "p80": 1.0}
    steps = [row for row in written if row["benchmark"] == "engine waterfall" and row["template"] == "paper"]
    assert [row["place"] for row in steps] == list(range(7 if "amx" in INSTRUCTION_SETS else 6))
    assert [row["step"] for row in steps][:3] == ["transformers, whole prompt", "fused forward", "prefix cached"]
    loading = [row for row in written if row["benchmark"] == "engine loading"]
    assert {row["dtype"] for row in loading} == {"fp32", "int8a12", "int8"}
    assert loading[0]["growth_over_needed"]["median"] == 1.1

    pytest.importorskip("matplotlib")
    from rgalign.bench import engine_plots

    monkeypatch.setattr(sys, "argv", ["engine_plots", str(out), "--out", str(tmp_path)])
    engine_plots.main()
    for name in ("engine_waterfall", "engine_variants"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
        assert "<svg" in (tmp_path / f"{name}.svg").read_text()


def test_runtimes_compute_the_same_model(model: tuple[Any, Path], tmp_path: Path) -> None:
    """Runs in the peers' environment only; --peers DIR makes it."""
    pytest.importorskip("onnx")
    load = random_workload()
    made = dict(engine_peers.with_transformers(model[0], load))
    made.update(engine_peers.with_runtimes(model[0], load, 1, tmp_path, calibrated=False))
    assert {"onnxruntime fp32", "openvino fp32"} <= set(made)
    loose = {
        name: dataclasses.replace(variant, least_cosine=0.9) for name, variant in made.items() if "fp32" not in name
    }
    found = engine.require_near({**made, **loose}, load.token_ids, engine.BASELINE)
    assert min(found[name]["least"] for name in made if "fp32" in name) > 0.99999


def test_a_graph_of_another_family_is_refused(tmp_path: Path) -> None:
    from rgalign.bench.engine_graph import Graph

    with pytest.raises(ConfigError, match="a Llama without biases; received qwen3"):
        Graph(Qwen3ForCausalLM(Qwen3Config(**SIZES, **HEADS)))


def test_the_prefix_is_repeated_for_each_row(model: tuple[Any, Path]) -> None:
    load = random_workload()
    inputs = Inputs(model[0], load)
    ids, last = engine_peers.pad(load.token_ids)
    values = dict(zip(inputs.names, inputs.of(ids, last), strict=True))
    assert values["positions"][0, 0] == load.prefix_length
    assert values["past_key.2"].shape == (5, 2, load.prefix_length, 32)
    assert np.abs(values["past_value.1"]).sum() > 0
    np.testing.assert_array_equal(values["past_key.0"][0], values["past_key.0"][4])


def test_the_peers_environment_takes_no_other_directory(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("dear diary")
    with pytest.raises(ConfigError, match="another directory"):
        make_environment(tmp_path)
    assert (tmp_path / "diary.txt").is_file()
    assert engine.without_peers(["--quick", "--peers", "x", "--out", "x"]) == ["--quick", "--out", "x"]
    assert engine.without_peers(["--peers=x", "--threads", "1", "2"]) == ["--threads", "1", "2"]


def test_the_config_that_work_is_counted_with_is_the_models(model: tuple[Any, Path]) -> None:
    config, _ = read_config(model[1])
    linear = sum(p.numel() for name, p in model[0].named_parameters() if "proj" in name)
    without_attention = prefill_gflop(config, [1], 0, 1, pruned=False) * 1e9 - 3 * 4 * 4 * 32
    assert without_attention == pytest.approx(2 * linear)
