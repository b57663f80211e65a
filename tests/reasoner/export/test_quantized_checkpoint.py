"""Checkpoints for other engines: what is on disk, computed by the engines' documented rule, is the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rgalign.errors import ConfigError
from rgalign.files import sha256_file
from rgalign.reasoner import quantized_checkpoint
from rgalign.reasoner.engine.build import Calibration
from rgalign.reasoner.hf import HFReasoner
from rgalign.reasoner.quantized_checkpoint import quantize_channels, write_checkpoint

SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}
PROMPTS = [np.random.default_rng(row).integers(0, 64, 5 + 7 * row).astype(np.int32) for row in range(6)]
FAMILIES: dict[str, Callable[[], Any]] = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=True)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),  # biases, an LM head of its own
}


def make(family: str, path: Path) -> Path:
    torch.manual_seed(0)
    model = FAMILIES[family]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(0.1 * torch.randn_like(parameter))
            if name.endswith("layernorm.weight"):  # outliers in a few channels, as real models have
                parameter[::17] *= 30.0
    model.to(torch.bfloat16).save_pretrained(path)
    tokenizer = Tokenizer(models.WordLevel({f"t{row}": row for row in range(64)}, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="t1").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("qwen3", tmp_path_factory.mktemp("qwen3") / "model")


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("qwen2", tmp_path_factory.mktemp("qwen2") / "model")


def stored(directory: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        found |= load_file(path)
    return found


class W8A8(torch.nn.Module):
    """x -> (round(x / s_x) @ codes^T) s_x s_w + b with s_x = max|x| / 127 of each token: vLLM's W8A8."""

    def __init__(self, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        assert codes.dtype == torch.int8
        assert scales.shape == (len(codes), 1)
        self.codes, self.scales, self.bias = codes.float(), scales.float().T, bias

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        step = states.abs().amax(dim=-1, keepdim=True).clamp_min(1e-12) / 127
        product = ((states / step).round() @ self.codes.T) * step * self.scales
        return product if self.bias is None else product + self.bias


def served_by_definition(source: Path, checkpoint: Path) -> HFReasoner:
    """The model with each quantised matrix computed as vLLM documents it, and the written norms."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tensors = stored(checkpoint)
    plain = {name: value.float() for name, value in tensors.items() if value.dtype == torch.bfloat16}
    model.load_state_dict(plain, strict=False)
    for name in [name for name in tensors if name.endswith("_scale")]:
        path = name.removesuffix(".weight_scale")
        parent, child = path.rsplit(".", 1)
        module = W8A8(tensors[f"{path}.weight"], tensors[name], model.get_submodule(path).bias)
        setattr(model.get_submodule(parent), child, module)
    return HFReasoner(model.eval(), AutoTokenizer.from_pretrained(source))


def cosines(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    assert left.std() > 0.1
    return torch.nn.functional.cosine_similarity(left, right)


@pytest.mark.parametrize("family", ["qwen3", "qwen2"])
def test_what_vllm_computes_is_the_model(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source = request.getfixturevalue(family)
    exact = HFReasoner.from_pretrained(str(source)).embed(PROMPTS)
    plain = write_checkpoint(str(source), tmp_path / "plain", "vllm")
    calibrated = Calibration(PROMPTS, alpha=0.5)
    write_checkpoint(str(source), tmp_path / "smooth", "vllm", calibration=calibrated)
    found = {name: served_by_definition(source, tmp_path / name).embed(PROMPTS) for name in ("plain", "smooth")}
    errors = {name: float((value - exact).norm() / exact.norm()) for name, value in found.items()}
    assert cosines(found["smooth"], exact).min() > 0.99
    assert 0 < errors["smooth"] < 0.8 * errors["plain"]  # outliers were planted: moving them must help
    assert len(stored(tmp_path / "plain")) == len(stored(source)) + 7 * SIZES["num_hidden_layers"]
    assert plain["files"].keys() >= {"config.json", "model.safetensors", "quantization.json", "tokenizer.json"}
    assert all(sha256_file(tmp_path / "plain" / name) == value for name, value in plain["files"].items())


def test_moving_outliers_changes_no_vector(qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every matrix left exact, the moved factors cancel; powers of two, so bfloat16 loses nothing either."""
    monkeypatch.setattr(quantized_checkpoint, "MATRICES", dict(quantized_checkpoint.MATRICES))
    monkeypatch.setattr(
        quantized_checkpoint, "quantize_channels", lambda weight, dtype: (weight, torch.ones(len(weight)))
    )
    write_checkpoint(str(qwen2), tmp_path / "out", "vllm", calibration=Calibration(PROMPTS, alpha=0.5))
    model = AutoModelForCausalLM.from_pretrained(qwen2, dtype=torch.float32)
    before = model.state_dict()["model.layers.0.mlp.down_proj.weight"].clone()
    tensors = {name: value.float() for name, value in stored(tmp_path / "out").items() if not name.endswith("_scale")}
    model.load_state_dict(tensors)
    assert not torch.equal(before, tensors["model.layers.0.mlp.down_proj.weight"])
    exact = HFReasoner.from_pretrained(str(qwen2)).embed(PROMPTS)
    torch.testing.assert_close(HFReasoner(model.eval(), AutoTokenizer.from_pretrained(qwen2)).embed(PROMPTS), exact)


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
def test_codes_fit_the_scales_as_the_engine_keeps_them(scale_dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(40, 24)
    weight[3] = 0.0
    codes, scales = quantize_channels(weight, scale_dtype)
    assert scales.dtype == scale_dtype
    assert codes.abs().max() == 127
    restored = codes.float() * scales.float()[:, None]
    assert torch.equal(restored[3], torch.zeros(24))
    bound = scales.float()[:, None] * (0.5 if scale_dtype == torch.float32 else 1.0)  # a rounded scale clips by < 0.5
    assert ((restored - weight).abs() <= bound + 1e-7).all()


def test_the_checkpoint_for_tensorrt(qwen3: Path, tmp_path: Path) -> None:
    write_checkpoint(str(qwen3), tmp_path / "out", "tensorrt-llm")
    tensors = stored(tmp_path / "out")
    name = "model.layers.1.mlp.gate_proj.weight"
    assert tensors[name].dtype == torch.int8
    assert tensors[f"{name}_scale"].dtype == torch.bfloat16
    assert tensors[f"{name}_scale"].shape == (SIZES["intermediate_size"],)
    quantization = json.loads((tmp_path / "out" / "hf_quant_config.json").read_text())["quantization"]
    assert quantization == {"quant_algo": "W8A16", "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
    assert "lm_head.weight" not in tensors  # tied


@pytest.mark.parametrize("target", ["vllm", "tensorrt-llm"])
def test_the_configuration_speaks_to_transformers_4_and_5(target: str, qwen3: Path, tmp_path: Path) -> None:
    write_checkpoint(str(qwen3), tmp_path / "out", target, "bf16")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 500000.0
    assert config["rope_scaling"] is None
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    source, written = stored(qwen3), stored(tmp_path / "out")
    assert source.keys() == written.keys()
    assert all(torch.equal(source[name], written[name]) for name in source)


def test_the_configuration_names_the_scheme(qwen3: Path, tmp_path: Path) -> None:
    write_checkpoint(str(qwen3), tmp_path / "out", "vllm")
    found = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    group = found["config_groups"]["group_0"]
    assert (found["quant_method"], found["format"], found["ignore"]) == (
        "compressed-tensors",
        "int-quantized",
        ["lm_head"],
    )
    assert (group["weights"]["strategy"], group["weights"]["dynamic"], group["weights"]["num_bits"]) == (
        "channel",
        False,
        8,
    )
    assert (group["input_activations"]["strategy"], group["input_activations"]["dynamic"]) == ("token", True)


def test_shards_and_their_index(qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized_checkpoint, "SHARD_BYTES", 40_000)
    write_checkpoint(str(qwen3), tmp_path / "out", "vllm")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / "out" / file)
    assert index["weight_map"].keys() == stored(tmp_path / "out").keys()


def test_what_is_refused(qwen2: Path, qwen3: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="its W8A16 layers drop biases"):
        write_checkpoint(str(qwen2), tmp_path / "out", "tensorrt-llm")
    with pytest.raises(ConfigError, match="vllm or tensorrt-llm"):
        write_checkpoint(str(qwen3), tmp_path / "out", "onnx")
    with pytest.raises(ConfigError, match="int8 or bf16; received 'fp8'"):
        write_checkpoint(str(qwen3), tmp_path / "out", "vllm", "fp8")
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match="a new directory or one written before"):
        write_checkpoint(str(qwen3), tmp_path / "mine", "vllm")
    broken = tmp_path / "broken"
    make("qwen3", broken)
    tensors = stored(broken)
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(ValueError, match="NaN or infinity"):
        write_checkpoint(str(broken), tmp_path / "out", "vllm")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "mine"]  # nothing half-written
