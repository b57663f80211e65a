"""What a build writes is whole or refused, and int8 is what quantize.py says, to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rgalign import _C
from rgalign.errors import ConfigError, DataError
from rgalign.reasoner.engine.artifact import MANIFEST, TENSORS, read_manifest
from rgalign.reasoner.engine.build import build_engine
from rgalign.reasoner.engine.quantize import activation_levels, quantize_rows, smoothing_factors
from rgalign.reasoner.engine.reasoner import load_engine

Make = Callable[[str], tuple[Any, Path]]


@pytest.fixture
def built(tmp_path: Path, checkpoint: Make) -> Path:
    build_engine(str(checkpoint("llama")[1]), tmp_path / "e", "int8")
    return tmp_path / "e"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda e: flip(e / TENSORS), "required sha256"),
        (lambda e: (e / TENSORS).write_bytes((e / TENSORS).read_bytes()[:-100]), "required sha256"),
        (lambda e: (e / TENSORS).unlink(), "no such file"),
        (lambda e: (e / MANIFEST).unlink(), "a manifest.json in it"),
        (lambda e: (e / MANIFEST).write_text((e / MANIFEST).read_text()[:-20]), "an engine's manifest"),
        (lambda e: (e / MANIFEST).write_text("[]"), "an engine's manifest"),
        (
            lambda e: (e / MANIFEST).write_text((e / MANIFEST).read_text().replace('"format": 1', '"format": 0')),
            "format",
        ),
        (lambda e: flip(e / "quantization.csv"), "required sha256"),
    ],
)
def test_a_damaged_engine_is_refused(damage: Callable[[Path], object], message: str, built: Path) -> None:
    load_engine(built)
    damage(built)
    with pytest.raises(DataError, match=message):
        load_engine(built)


def test_a_build_replaces_an_engine_but_no_other_directory(tmp_path: Path, checkpoint: Make, built: Path) -> None:
    first = read_manifest(built).hash
    assert build_engine(str(checkpoint("llama")[1]), built, "int8").hash == first
    assert build_engine(str(checkpoint("llama")[1]), built, "int8a12").hash != first
    other = tmp_path / "mine"
    other.mkdir()
    (other / "diary.txt").write_text("dear diary")
    with pytest.raises(ConfigError, match="another directory"):
        build_engine(str(checkpoint("llama")[1]), other, "int8")
    assert (other / "diary.txt").read_text() == "dear diary"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e", "mine"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type: required llama or"),
        ({"hidden_act": "gelu"}, "required silu"),
        ({"hidden_size": 72}, "a multiple of 16"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "rope_type"),
        ({"intermediate_size": 128}, "gate_proj.weight: required"),
        ({"num_hidden_layers": 4}, "a tensor model.layers.3"),
    ],
)
def test_a_model_it_cannot_compute_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path, checkpoint: Make
) -> None:
    source = checkpoint("llama")[1]
    model = tmp_path / "m"
    model.mkdir()
    (model / "model.safetensors").symlink_to(source / "model.safetensors")
    (model / "config.json").write_text(json.dumps({**json.loads((source / "config.json").read_text()), **change}))
    with pytest.raises((ConfigError, DataError), match=message):
        build_engine(str(model), tmp_path / "e", "int8")
    assert not (tmp_path / "e").exists()


def test_a_weight_that_is_not_finite_is_refused(tmp_path: Path, checkpoint: Make) -> None:
    source = checkpoint("llama")[1]
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    (tmp_path / "m").mkdir()
    save_file(tensors, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "m" / "config.json").write_text((source / "config.json").read_text())
    with pytest.raises(DataError, match=r"layers\.1\.mlp\.up_proj\.weight: required finite"):
        build_engine(str(tmp_path / "m"), tmp_path / "e", "int8")


@pytest.mark.parametrize("levels", [127, 2047])
def test_an_int8_layer_is_numpys_to_the_bit(levels: int) -> None:
    """One layer whose attention and MLP add nothing but the value path: all in float32, integers exact."""
    rng = np.random.default_rng(3)
    hidden, vocabulary = 48, 20
    embed = rng.normal(size=(vocabulary, hidden)).astype(np.float32)
    weight = torch.from_numpy(rng.normal(size=(3 * 16, hidden)).astype(np.float32))
    codes, scales = (value.numpy() for value in quantize_rows(weight))
    out_codes, out_scales = (
        value.numpy() for value in quantize_rows(torch.from_numpy(rng.normal(size=(hidden, 16)).astype(np.float32)))
    )
    ones = np.ones(hidden, dtype=np.float32)
    shape = {
        "num_layers": 1,
        "hidden": hidden,
        "intermediate": 16,
        "num_heads": 1,
        "num_kv_heads": 1,
        "head_dim": 16,
        "eps": 1e-6,
        "rope_scale": 1.0,
        "qk_norm": False,
        "activation_levels": levels,
        "vocabulary": vocabulary,
    }
    layer = {
        "input_norm": ones,
        "post_norm": ones,
        "qkv.weight": codes,
        "qkv.scale": scales,
        "out.weight": out_codes,
        "out.scale": out_scales,
        "gate_up.weight": np.zeros((32, hidden), np.int8),
        "gate_up.scale": np.ones(32, np.float32),
        "down.weight": np.zeros((hidden, 16), np.int8),
        "down.scale": ones,
    }

    def state(instructions: str) -> np.ndarray[Any, Any]:
        model = _C.EngineModel(shape, None, embed, ones, np.ones(8, dtype=np.float32), instructions)
        model.add_layer(layer)
        return _C.EngineSession(model, 1).forward(
            hidden,
            np.array([7], np.int32),
            np.zeros(1, np.int32),
            np.zeros(0, np.int32),
            np.array([[0, 1, 0, 0]], np.int32),
            np.zeros((0, 2), np.int32),
            np.zeros(1, np.int32),
        )

    found = [state(name) for name in _C.engine_instruction_sets()]

    def norm(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        squares = np.zeros(8, dtype=np.float64)
        for chunk in x.reshape(-1, 8):  # fused: one rounding of product and sum
            squares = (chunk.astype(np.float64) ** 2 + squares).astype(np.float32).astype(np.float64)
        four = squares[:4].astype(np.float32) + squares[4:].astype(np.float32)
        total = (four[0] + four[2]) + (four[1] + four[3])
        factor = np.float32(1) / np.sqrt(total / np.float32(len(x)) + np.float32(1e-6))
        return x * factor

    def product(x: np.ndarray[Any, Any], codes: np.ndarray[Any, Any], scales: np.ndarray[Any, Any]) -> Any:
        peak = np.abs(x).max()
        quantized = np.rint(x * (np.float32(levels) / peak)).astype(np.int64)
        return (quantized @ codes.T.astype(np.int64)).astype(np.float32) * (peak / np.float32(levels)) * scales

    values = product(norm(embed[7]), codes, scales)[32:]  # a single token attends to itself alone
    expected = norm(embed[7] + product(values, out_codes, out_scales))
    assert np.abs(expected).sum() > 1
    for each in found:
        np.testing.assert_array_equal(each[0], expected)


def test_levels_never_overflow() -> None:
    assert activation_levels("int8", 576) == 127
    assert activation_levels("int8a12", 1536) == 2047
    assert activation_levels("int8a12", 18944) * 127 * 18944 < 2**31
    assert activation_levels("fp32", 576) == 0


def test_rows_of_zeros_and_silent_channels() -> None:
    codes, scales = quantize_rows(torch.tensor([[0.0, 0.0], [1.0, -2.0]]))
    assert codes.tolist() == [[0, 0], [64, -127]]
    assert scales[0] == 0
    factors = smoothing_factors(torch.tensor([0.0, 1.0, 100.0]), torch.ones(2, 3), 1.0)
    assert torch.isfinite(factors).all()
    assert factors[2] / factors[1] == 128  # the nearest power of two
