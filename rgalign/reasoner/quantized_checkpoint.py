"""A checkpoint that another engine reads: Hugging Face's layout, int8 matrices with a scale per output channel.

    vllm           compressed-tensors W8A8: X.weight int8 [N, K], X.weight_scale float32 [N, 1]; activations are
                   quantised per token while it runs
    tensorrt-llm   W8A16: X.weight int8 [N, K], X.weight_scale [N]; activations stay in 16 bits

``bf16`` writes plain weights, for engines whose transformers is older than the model's config.json. Outliers are moved
as in our own engine (engine/quantize.py), so both are compared at the same calibration.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias
from uuid import uuid4

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rgalign.errors import ConfigError
from rgalign.files import read_json, sha256_file, sync_directory, write_json
from rgalign.reasoner.engine.build import Calibration
from rgalign.reasoner.engine.calibrate import LayerSeen, matrix_error, observe
from rgalign.reasoner.engine.checkpoint import Checkpoint, DecoderConfig, checkpoint_directory, read_config
from rgalign.reasoner.engine.quantize import LEVELS, smoothing_factors
from rgalign.reasoner.pretrained import load_tokenizer, model_fingerprint
from rgalign.reasoner.quantized_checkpoint_format import config_of, modelopt_config, plain_dtype

Target: TypeAlias = Literal["vllm", "tensorrt-llm"]
TARGETS: tuple[Target, ...] = ("vllm", "tensorrt-llm")
MATRICES = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
NORMS = {"qkv": "input_layernorm", "gate_up": "post_attention_layernorm"}  # what makes the input of these
INFO = "rgalign.json"
SHARD_BYTES = 4 << 30


def write_checkpoint(
    ref: str, out: Path, target: str, dtype: str = "int8", calibration: Calibration | None = None
) -> dict[str, Any]:
    """Writes the directory ``out`` whole, replacing one that it wrote before; returns what ``rgalign.json`` holds.

    Args:
        ref: Llama, Mistral, Qwen2.5 or Qwen3, see :mod:`rgalign.reasoner.pretrained`.
        target: vllm or tensorrt-llm.
        dtype: int8 or bf16.
        calibration: prompts that say where outliers are; uncalibrated int8 is noticeably worse.

    Raises:
        ConfigError: an unknown target or dtype, a model that the target computes wrongly, another directory at ``out``.
        ModelNotFoundError, DataError: no checkpoint, or one with missing, misshapen or non-finite tensors.
    """
    directory = checkpoint_directory(ref)
    config, _ = read_config(directory)
    values = read_json(directory / "config.json")
    _check(target, dtype, out, values)
    seen = observe(ref, calibration.prompts).layers if calibration and dtype == "int8" else None
    alpha = calibration.alpha if calibration else None
    errors: list[dict[str, Any]] = []
    out.parent.mkdir(parents=True, exist_ok=True)
    building = out.with_name(f".{out.name}.{uuid4().hex[:8]}.tmp")
    building.mkdir()
    try:
        with Checkpoint.open(directory) as checkpoint:
            source = _Source(checkpoint, config, _tensor_names(directory))
            made = _Made(target, plain_dtype(values), quantized=dtype == "int8", seen=seen, alpha=alpha)
            _save_shards(building, _tensors(source, made, errors))
        write_json(building / "config.json", config_of(values, target, dtype))
        if target == "tensorrt-llm" and dtype == "int8":
            write_json(building / "hf_quant_config.json", modelopt_config())
        if (directory / "generation_config.json").is_file():
            shutil.copy2(directory / "generation_config.json", building)
        load_tokenizer(ref).save_pretrained(building)
        if errors:
            write_json(building / "quantization.json", errors)
        info = {
            "format": 1,
            "target": target,
            "dtype": dtype,
            "source": ref,
            "model": model_fingerprint(ref),
            "calibration": {"alpha": alpha, "prompts": len(calibration.prompts)} if seen and calibration else {},
            "files": {path.name: sha256_file(path) for path in sorted(building.iterdir())},
        }
        write_json(building / INFO, info)
        for path in building.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        if out.exists():
            shutil.rmtree(out)
        os.replace(building, out)
        sync_directory(out.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return info


def _check(target: str, dtype: str, out: Path, config: Mapping[str, Any]) -> None:
    if target not in TARGETS:
        raise ConfigError(where="target", required=" or ".join(TARGETS), received=repr(target))
    if dtype not in ("int8", "bf16"):
        raise ConfigError(where=f"dtype for {target}", required="int8 or bf16", received=repr(dtype))
    if out.exists() and not (out / INFO).is_file():
        raise ConfigError(where=str(out), required="a new directory or one written before", received="another one")
    if target == "tensorrt-llm" and dtype == "int8" and config["model_type"] != "qwen3":
        # Its weight-only layer takes a bias and does not add it (linear.py); only Qwen3 has been looked into.
        required = "qwen3 (nothing else has been looked into: its W8A16 layers drop biases)"
        raise ConfigError(where="model for tensorrt-llm", required=required, received=config["model_type"])


def quantize_channels(weight: Tensor, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[N, K] float32 to codes [N, K] int8 and scales [N] in the type in which the engine keeps them.

    The codes are made with the rounded scales: an engine that holds scales in bfloat16 would else add 0.2 % of its own.
    """
    scales = (weight.abs().amax(dim=1) / LEVELS).to(scale_dtype)
    exact = scales.float()
    inverse = torch.where(exact > 0, 1.0 / exact, 0.0)
    return (weight * inverse[:, None]).round().clamp_(-LEVELS, LEVELS).to(torch.int8), scales


def smoothed_layer(
    layer: dict[str, Tensor], seen: LayerSeen, alpha: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same layer with flatter inputs of qkv, gate_up and down, and what those inputs are divided by.

    Args:
        layer: tensors by their name within it, "self_attn.q_proj.weight" and so on.
    """
    made = dict(layer)
    factors = {}
    for name in ("qkv", "gate_up", "down"):
        parts = [f"{part}.weight" for part in MATRICES[name]]
        factor = smoothing_factors(seen[name].peaks, torch.cat([made[part] for part in parts]), alpha)
        for part in parts:
            made[part] = made[part] * factor
        factors[name] = factor
    for name, norm in NORMS.items():
        made[f"{norm}.weight"] = made[f"{norm}.weight"] / factors[name]
    for kind in ("weight", "bias"):  # up makes the input of down
        up = f"mlp.up_proj.{kind}"
        if up in made:
            made[up] = (made[up].T / factors["down"]).T
    return made, factors


@dataclass(frozen=True)
class _Source:
    checkpoint: Checkpoint
    config: DecoderConfig
    names: frozenset[str]


@dataclass(frozen=True)
class _Made:
    """What is written: ``plain`` is the type of what stays in 16 bits."""

    target: str
    plain: torch.dtype
    quantized: bool
    seen: list[LayerSeen] | None
    alpha: float | None

    @property
    def scale_dtype(self) -> torch.dtype:
        """Of scales in the engine: TensorRT-LLM copies them into the model's type."""
        return self.plain if self.target == "tensorrt-llm" else torch.float32


def _tensors(source: _Source, made: _Made, errors: list[dict[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the written checkpoint, layer by layer; adds to ``errors`` one record a matrix."""
    checkpoint, config = source.checkpoint, source.config
    groups = {f"{part}.weight": name for name, parts in MATRICES.items() for part in parts}
    yield "model.embed_tokens.weight", checkpoint.embedding(config).to(made.plain)
    for index in range(config.num_layers):
        prefix = f"model.layers.{index}."
        layer = _layer(source, prefix)
        factors: dict[str, Tensor] = {}
        if made.seen is not None and made.alpha is not None:
            layer, factors = smoothed_layer(layer, made.seen[index], made.alpha)
        for name, value in layer.items():
            if not made.quantized or name not in groups:
                yield prefix + name, value.to(made.plain)
                continue
            codes, scales = quantize_channels(value, made.scale_dtype)
            yield prefix + name, codes
            yield f"{prefix}{name}_scale", scales[:, None] if made.target == "vllm" else scales
            group = groups[name]
            rows = None if made.seen is None else made.seen[index][group].rows / factors.get(group, torch.ones(()))
            errors.append({**vars(matrix_error(index, group, value, rows, LEVELS)), "matrix": name})
    yield "model.norm.weight", checkpoint.final_norm(config).to(made.plain)
    if "lm_head.weight" in source.names:
        yield "lm_head.weight", checkpoint.tensor("lm_head.weight", config.vocabulary, config.hidden).to(made.plain)


def _layer(source: _Source, prefix: str) -> dict[str, Tensor]:
    """Its tensors in float32 by their name within the layer, biases only where there are any."""
    c = source.config
    queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (c.hidden,),
        "post_attention_layernorm.weight": (c.hidden,),
        "self_attn.q_proj.weight": (queries, c.hidden),
        "self_attn.k_proj.weight": (keys, c.hidden),
        "self_attn.v_proj.weight": (keys, c.hidden),
        "self_attn.o_proj.weight": (c.hidden, queries),
        "mlp.gate_proj.weight": (c.intermediate, c.hidden),
        "mlp.up_proj.weight": (c.intermediate, c.hidden),
        "mlp.down_proj.weight": (c.hidden, c.intermediate),
    }
    if c.qk_norm:
        shapes |= {"self_attn.q_norm.weight": (c.head_dim,), "self_attn.k_norm.weight": (c.head_dim,)}
    for name, shape in list(shapes.items()):
        bias = name.replace("proj.weight", "proj.bias")
        if bias != name and prefix + bias in source.names:
            shapes[bias] = shape[:1]
    return {name: source.checkpoint.tensor(prefix + name, *shape) for name, shape in shapes.items()}


def _tensor_names(directory: Path) -> frozenset[str]:
    names: set[str] = set()
    for path in directory.glob("*.safetensors"):
        with safe_open(str(path), framework="pt") as file:
            names.update(file.keys())
    return frozenset(names)


def _save_shards(directory: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
    """As transformers shards them: one file, or several and their index."""
    shards = list(_shards(directory, tensors))
    if len(shards) == 1:
        os.replace(directory / shards[0][0], directory / "model.safetensors")
        return
    weight_map = {name: file for file, sizes in shards for name in sizes}
    total = sum(sum(sizes.values()) for _, sizes in shards)
    write_json(
        directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
    )


def _shards(directory: Path, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, dict[str, int]]]:
    """Writes files of at most SHARD_BYTES; gives each one's name and the bytes of its tensors."""
    shard: dict[str, Tensor] = {}
    number = 1
    for name, tensor in tensors:
        if shard and sum(kept.nbytes for kept in shard.values()) + tensor.nbytes > SHARD_BYTES:
            yield _save_shard(directory, number, shard)
            shard, number = {}, number + 1
        shard[name] = tensor
    yield _save_shard(directory, number, shard)


def _save_shard(directory: Path, number: int, shard: Mapping[str, Tensor]) -> tuple[str, dict[str, int]]:
    file = f"model-{number:05d}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in shard.items()}, directory / file, {"format": "pt"})
    return file, {name: tensor.nbytes for name, tensor in shard.items()}
