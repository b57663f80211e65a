"""A Hugging Face checkpoint (config.json and safetensors) as the decoder that the engine computes. No transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from rgalign.errors import ConfigError, DataError, ModelNotFoundError
from rgalign.reasoner.engine.decoder_config import LAYOUT as LAYOUT
from rgalign.reasoner.engine.decoder_config import DecoderConfig as DecoderConfig
from rgalign.reasoner.engine.rope import Frequencies, rope_frequencies
from rgalign.reasoner.pretrained import resolve_model

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class DecoderLayer:
    """float32: norms [n]; weights [out, in]; biases [out] or None. ``gate_up`` is in LAYOUT's order."""

    norms: dict[str, torch.Tensor]  # input_norm, post_norm and, with qk_norm, query_norm, key_norm
    weights: dict[str, torch.Tensor]  # qkv, out, gate_up, down
    biases: dict[str, torch.Tensor]  # those that there are


def checkpoint_directory(ref: str) -> Path:
    """The local directory of a model that :func:`rgalign.reasoner.pretrained.resolve_model` knows."""
    source = resolve_model(ref)
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "tokenizer*"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        required = "a model this machine has or can fetch (give a local directory)"
        raise ModelNotFoundError(where=f"model {ref!r}", required=required, received=type(error).__name__) from error


def read_config(directory: Path) -> tuple[DecoderConfig, Frequencies]:
    """Raises ConfigError for a family, activation or size that the engine does not compute."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    where = f"{directory / 'config.json'}"
    if config.get("model_type") not in FAMILIES:
        raise ConfigError(
            where=f"{where} model_type", required=" or ".join(FAMILIES), received=repr(config.get("model_type"))
        )
    if config.get("hidden_act", "silu") != "silu":
        raise ConfigError(where=f"{where} hidden_act", required="silu", received=repr(config["hidden_act"]))
    heads = int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or config["hidden_size"] // heads)
    frequencies, rope_scale = rope_frequencies(config, head_dim)
    decoder = DecoderConfig(
        num_layers=int(config["num_hidden_layers"]),
        hidden=int(config["hidden_size"]),
        intermediate=int(config["intermediate_size"]),
        num_heads=heads,
        num_kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=head_dim,
        eps=float(config.get("rms_norm_eps", 1e-6)),
        rope_scale=rope_scale,
        qk_norm=config["model_type"] == "qwen3",
        vocabulary=int(config["vocab_size"]),
        max_positions=_max_positions(config),
    )
    for name in ("hidden", "intermediate", "head_dim"):
        if getattr(decoder, name) % 16:
            raise ConfigError(
                where=f"{where} {name}", required="a multiple of 16", received=f"{getattr(decoder, name)}"
            )
    return decoder, frequencies


def is_supported(ref: str, max_tokens: int) -> bool:
    """Whether the engine computes this model, for prompts of so many tokens.

    Raises:
        ModelNotFoundError: it is not there.
    """
    directory = checkpoint_directory(ref)
    if not any(directory.glob("*.safetensors")):
        return False
    try:
        config, _ = read_config(directory)
    except ConfigError:
        return False
    return max_tokens <= config.max_positions


class Checkpoint:
    """The tensors of a checkpoint, by name, in float32; a missing or misshapen one is named."""

    def __init__(self, directory: Path, files: Mapping[str, Any]) -> None:
        self.directory = directory
        self._files = files  # tensor name -> open file

    @classmethod
    @contextmanager
    def open(cls, directory: Path) -> Iterator[Checkpoint]:
        paths = sorted(directory.glob("*.safetensors"))
        if not paths:
            raise ModelNotFoundError(where=f"model {directory}", required="*.safetensors in it", received="none")
        with ExitStack() as stack:
            files: dict[str, Any] = {}
            for path in paths:
                file = stack.enter_context(safe_open(str(path), framework="pt"))
                files.update(dict.fromkeys(file.keys(), file))
            yield cls(directory, files)

    def embedding(self, config: DecoderConfig) -> torch.Tensor:
        """[V, D] in bfloat16 where that loses nothing, else float32."""
        table = self.tensor("model.embed_tokens.weight", config.vocabulary, config.hidden)
        halved = table.bfloat16()
        return halved if torch.equal(halved.float(), table) else table

    def final_norm(self, config: DecoderConfig) -> torch.Tensor:
        return self.tensor("model.norm.weight", config.hidden)

    def layer(self, config: DecoderConfig, index: int) -> DecoderLayer:
        c, name = config, f"model.layers.{index}."
        queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        norms = {
            "input_norm": self.tensor(name + "input_layernorm.weight", c.hidden),
            "post_norm": self.tensor(name + "post_attention_layernorm.weight", c.hidden),
        }
        if c.qk_norm:
            norms["query_norm"] = self.tensor(name + "self_attn.q_norm.weight", c.head_dim)
            norms["key_norm"] = self.tensor(name + "self_attn.k_norm.weight", c.head_dim)
        rows = {"q": queries, "k": keys, "v": keys}
        qkv = [self.tensor(f"{name}self_attn.{part}_proj.weight", size, c.hidden) for part, size in rows.items()]
        qkv_bias = [self._bias(f"{name}self_attn.{part}_proj.bias", size) for part, size in rows.items()]
        halves = [self.tensor(f"{name}mlp.{part}_proj.weight", c.intermediate, c.hidden) for part in ("gate", "up")]
        biases = [self._bias(f"{name}mlp.{part}_proj.bias", c.intermediate) for part in ("gate", "up")]
        weights = {
            "qkv": torch.cat(qkv),
            "out": self.tensor(name + "self_attn.o_proj.weight", c.hidden, queries),
            "gate_up": interleave(*halves),
            "down": self.tensor(name + "mlp.down_proj.weight", c.hidden, c.intermediate),
        }
        found = {
            "qkv": torch.cat(qkv_bias),
            "out": self._bias(name + "self_attn.o_proj.bias", c.hidden),
            "gate_up": interleave(*biases),
            "down": self._bias(name + "mlp.down_proj.bias", c.hidden),
        }
        return DecoderLayer(norms, weights, {which: bias for which, bias in found.items() if bias.any()})

    def tensor(self, name: str, *shape: int) -> torch.Tensor:
        if name not in self._files:
            raise DataError(where=f"{self.directory}", required=f"a tensor {name}", received="none of that name")
        value: torch.Tensor = self._files[name].get_tensor(name).float()
        if tuple(value.shape) != shape:
            raise DataError(where=f"{self.directory} {name}", required=f"{shape}", received=f"{tuple(value.shape)}")
        if not bool(torch.isfinite(value).all()):
            raise DataError(where=f"{self.directory} {name}", required="finite numbers", received="NaN or infinity")
        return value

    def _bias(self, name: str, size: int) -> torch.Tensor:
        return self.tensor(name, size) if name in self._files else torch.zeros(size)


def interleave(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """[2 n, ..]: LAYOUT rows of the gate, the same rows of up, and so on."""
    parts = torch.stack([gate.reshape(-1, LAYOUT, *gate.shape[1:]), up.reshape(-1, LAYOUT, *up.shape[1:])], dim=1)
    return parts.reshape(2 * len(gate), *gate.shape[1:])


def _max_positions(config: Mapping[str, Any]) -> int:
    """Longest prompt that is computed as trained: beyond a sliding window, attention would be another one."""
    limit = int(config["max_position_embeddings"])
    window = config.get("sliding_window")
    used = config.get("use_sliding_window", config["model_type"] == "mistral")
    return min(limit, int(window)) if window and used else limit


def as_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """bfloat16 as its bits in uint16."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).contiguous().numpy()
