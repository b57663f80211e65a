"""The layer report: its emulation is the engine, and a layer that was made worse stands out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from rgalign.errors import DataError
from rgalign.reasoner.engine.artifact import TENSORS, load_state_shift, read_manifest, write_artifact
from rgalign.reasoner.engine.build import Calibration, build_engine
from rgalign.reasoner.engine.reasoner import load_engine
from rgalign.reasoner.pretrained import load_model
from rgalign.training.parity.layers import layer_errors, quantized_layers, read_layers, write_layers

PROMPTS = [np.random.default_rng(row).integers(0, 256, 9 + 5 * row).astype(np.int32) for row in range(4)]


@pytest.fixture(scope="module")
def model(trained: SimpleNamespace) -> Any:
    return load_model(trained.model)


@pytest.mark.parametrize(("dtype", "alpha"), [("int8", None), ("int8", 0.5), ("int8a12", None)])
def test_the_emulation_is_the_engine(
    dtype: str, alpha: float | None, trained: SimpleNamespace, model: Any, tmp_path: Path
) -> None:
    build_engine(trained.model, tmp_path / "engine", dtype, Calibration(PROMPTS, alpha) if alpha else None)
    expected = load_engine(tmp_path / "engine").embed(PROMPTS)
    shift = load_state_shift(tmp_path / "engine")
    assert (shift is None) == (alpha is None)
    expected = expected if shift is None else expected + shift
    decoder = model.get_decoder()
    exact_layers = decoder.layers
    exact = torch.cat([last_state(decoder, ids) for ids in PROMPTS])
    decoder.layers = nn.ModuleList(quantized_layers(decoder, tmp_path / "engine"))
    try:
        emulated = torch.cat([last_state(decoder, ids) for ids in PROMPTS])
    finally:
        decoder.layers = exact_layers
    apart = (expected - exact).norm()
    assert apart > 1e-3 * exact.norm()
    assert (emulated - expected).norm() < 0.1 * apart  # codes that lie between two levels may round differently


def last_state(decoder: Any, ids: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        state: torch.Tensor = decoder(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).last_hidden_state
    return state[:, -1]


def test_a_spoilt_layer_stands_out(trained: SimpleNamespace, model: Any, tmp_path: Path) -> None:
    build_engine(trained.model, tmp_path / "engine", "int8a12")
    before = layer_errors(model, tmp_path / "engine", PROMPTS)
    assert [error.layer for error in before] == [0, 1, 2]
    assert all(0 < error.alone < 0.2 and error.after > 0 and error.qkv > 0 for error in before)
    tensors = load_file(tmp_path / "engine" / TENSORS)
    tensors["layers.1.down.scale"] = tensors["layers.1.down.scale"] * 1.5
    manifest = read_manifest(tmp_path / "engine")
    reports = {name: (tmp_path / "engine" / name).read_bytes() for name in manifest.files if name != TENSORS}
    write_artifact(tmp_path / "engine", tensors, manifest, reports)
    after = layer_errors(model, tmp_path / "engine", PROMPTS)
    assert after[1].alone > 5 * before[1].alone
    assert after[0] == before[0]
    assert all(0 < error.varying < error.alone for error in after)
    assert after[2].alone == before[2].alone  # alone: its own error only
    assert after[2].after > 2 * before[2].after  # behind it: that of all before it

    write_layers(tmp_path / "layers.csv", after)
    assert read_layers(tmp_path / "layers.csv") == after


def test_what_is_refused(trained: SimpleNamespace, model: Any, tmp_path: Path) -> None:
    build_engine(trained.model, tmp_path / "exact", "fp32")
    with pytest.raises(DataError, match="an 8-bit engine of 3 layers; received fp32"):
        layer_errors(model, tmp_path / "exact", PROMPTS)
    build_engine(trained.model, tmp_path / "engine", "int8")
    with pytest.raises(DataError, match="two or more prompts; received 1"):
        layer_errors(model, tmp_path / "engine", PROMPTS[:1])
