"""Where an 8-bit engine's error enters: each layer quantised alone, and all of them up to a layer.

The engine's weights, norms and codes are put into the transformers model, whose arithmetic is then the engine's but for
the order of sums. With f(P) the final state of prompt P,

    alone[l]    = rms_P ||e_l(P)|| / rms_P ||f(P) - mean f||            e_l = f_l - f, f_l: only layer l quantised
    varying[l]  = the same of e_l - mean e_l: what the engine's state shift (engine/build.py) cannot take off
    after[l]    = rms_P ||h_l'(P) - h_l(P)|| / rms_P ||h_l(P)||         h_l': last token behind layer l, 0..l quantised

An ``alone`` of 0.1 means: what this layer adds is a tenth of what tells prompts apart.
"""

from __future__ import annotations

import copy
import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from rgalign.errors import DataError
from rgalign.files import atomic_path, read_json
from rgalign.reasoner.engine.artifact import REPORT, TENSORS, read_manifest
from rgalign.reasoner.engine.checkpoint import LAYOUT, DecoderConfig
from rgalign.reasoner.engine.quantize import activation_levels
from rgalign.reasoner.prefix_tree import TokenIds

NORMS = {
    "input_norm": "input_layernorm",
    "post_norm": "post_attention_layernorm",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
}
MATRICES = ("qkv", "out", "gate_up", "down")
Layer: TypeAlias = Any  # a decoder layer of transformers


@dataclass(frozen=True)
class LayerError:
    """Args:
    qkv, out, gate_up, down: relative error of each product by itself, as the engine's build measured it.
    after, alone, varying: see above.
    """

    layer: int
    qkv: float
    out: float
    gate_up: float
    down: float
    after: float
    alone: float
    varying: float


class QuantizedLinear(nn.Module):
    """x -> (round(x / s_x) s_x) @ (codes s_w)^T + b,  s_x = max|x| / levels of each token."""

    def __init__(self, weight: Tensor, bias: Tensor | None, levels: int) -> None:
        super().__init__()
        self.weight, self.bias, self.levels = weight, bias, levels

    def forward(self, states: Tensor) -> Tensor:
        step = states.abs().amax(dim=-1, keepdim=True).clamp_min(1e-30) / self.levels
        return nn.functional.linear((states / step).round() * step, self.weight, self.bias)


def layer_errors(
    model: Any, engine: Path, prompts: Sequence[TokenIds], *, on_prompt: Callable[[], None] = lambda: None
) -> list[LayerError]:
    """One record a layer of a built 8-bit engine.

    Args:
        model: the transformers model that it was built from, float32.
        prompts: two or more whole prompts; the cost of each is that of half as many passes as there are layers.

    Raises:
        DataError: an fp32 engine, another model's, or fewer than two prompts.
    """
    decoder = model.get_decoder()
    quantized = quantized_layers(decoder, engine)
    if len(prompts) < 2:
        raise DataError(where="layer report", required="two or more prompts", received=str(len(prompts)))
    states = [_states(decoder, quantized, prompt, on_prompt) for prompt in prompts]
    exact, alone, behind, behind_quantized = (torch.stack(each) for each in zip(*states, strict=True))
    spread = _rms((exact - exact.mean(dim=0)).norm(dim=-1))  # [P, D] -> a number
    moved = alone - exact[:, None]  # [P, L, D]
    varying = moved - moved.mean(dim=0)
    alone_rms, varying_rms = (_rms(each.norm(dim=-1)) / spread.clamp_min(1e-30) for each in (moved, varying))
    after_rms = _rms((behind_quantized - behind).norm(dim=-1)) / _rms(behind.norm(dim=-1))
    of_matrix = {(each["layer"], each["matrix"]): float(each["relative"]) for each in _build_report(engine)}
    return [
        LayerError(
            layer=layer,
            **{name: of_matrix[layer, name] for name in MATRICES},
            after=round(float(after_rms[layer]), 6),
            alone=round(float(alone_rms[layer]), 6),
            varying=round(float(varying_rms[layer]), 6),
        )
        for layer in range(len(quantized))
    ]


def write_layers(path: Path, errors: Sequence[LayerError]) -> None:
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(asdict(errors[0])))
        writer.writeheader()
        writer.writerows(asdict(error) for error in errors)


def read_layers(path: Path) -> list[LayerError]:
    with open(path, encoding="utf-8", newline="") as file:
        return [
            LayerError(int(row.pop("layer")), **{name: float(value) for name, value in row.items()})
            for row in csv.DictReader(file)
        ]


def quantized_layers(decoder: Any, engine: Path) -> list[Layer]:
    """Copies of the decoder's layers that compute as the engine in ``engine`` does."""
    manifest = read_manifest(engine)
    config = manifest.config
    if manifest.dtype == "fp32" or config.num_layers != len(decoder.layers):
        received = f"{manifest.dtype} with {config.num_layers} layers"
        required = f"an 8-bit engine of {len(decoder.layers)} layers"
        raise DataError(where=str(engine), required=required, received=received)
    levels = activation_levels(
        manifest.dtype, max(config.hidden, config.intermediate, config.num_heads * config.head_dim)
    )
    with safe_open(str(engine / TENSORS), framework="pt") as file:
        names = set(file.keys())

        def tensors(index: int) -> dict[str, Tensor]:
            start = f"layers.{index}."
            return {name.removeprefix(start): file.get_tensor(name) for name in names if name.startswith(start)}

        return [_layer(layer, tensors(index), config, levels) for index, layer in enumerate(decoder.layers)]


def _layer(exact: Layer, tensors: dict[str, Tensor], config: DecoderConfig, levels: int) -> Layer:
    layer = copy.deepcopy(exact)
    for name, path in NORMS.items():
        if name in tensors:
            layer.get_submodule(path).weight = nn.Parameter(tensors[name].float(), requires_grad=False)
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    for name in MATRICES:
        weight = tensors[f"{name}.weight"].float() * tensors[f"{name}.scale"][:, None]
        bias = tensors.get(f"{name}.bias")
        for path, rows in _parts(name, queries, keys, len(weight)).items():
            parent, child = path.rsplit(".", 1)
            part = QuantizedLinear(weight[rows], None if bias is None else bias[rows].float(), levels)
            setattr(layer.get_submodule(parent), child, part)
    return layer


def _parts(name: str, queries: int, keys: int, size: int) -> dict[str, Tensor]:
    """Rows of a fused matrix of ``size`` that belong to each of the model's own."""
    rows = torch.arange(size)
    if name == "qkv":
        q, k, v = torch.tensor_split(rows, (queries, queries + keys))
        return {"self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v}
    if name == "gate_up":
        gate, up = rows.view(-1, 2, LAYOUT).unbind(dim=1)
        return {"mlp.gate_proj": gate.flatten(), "mlp.up_proj": up.flatten()}
    return {"self_attn.o_proj" if name == "out" else "mlp.down_proj": rows}


@torch.no_grad()
def _states(
    decoder: Any, quantized: Sequence[Layer], prompt: TokenIds, on_prompt: Callable[[], None]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of one prompt: f [D], f_l [L, D], h_l [L, D] and h_l' [L, D]."""
    inputs, arguments = _layer_inputs(decoder, prompt)
    exact = list(decoder.layers)

    def run(layers: Sequence[Layer], first: int, hidden: Tensor) -> list[Tensor]:
        behind = []
        for index, layer in enumerate(layers, start=first):
            made = layer(hidden, **arguments[index])
            hidden = made if isinstance(made, Tensor) else made[0]
            behind.append(hidden)
        return behind

    behind = run(exact, 0, inputs[0])
    behind_quantized = run(quantized, 0, inputs[0])
    alone = [run([quantized[at], *exact[at + 1 :]], at, inputs[at])[-1] for at in range(len(exact))]
    on_prompt()

    def last(states: Sequence[Tensor]) -> Tensor:
        return torch.stack([hidden[0, -1] for hidden in states])

    return decoder.norm(last(behind)[-1]), decoder.norm(last(alone)), last(behind), last(behind_quantized)


def _layer_inputs(decoder: Any, prompt: TokenIds) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """What each layer is called with: hidden states [1, T, D] and the other arguments."""
    inputs: list[Tensor] = []
    arguments: list[dict[str, Any]] = []

    def keep(_: Any, positional: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        inputs.append(positional[0])
        arguments.append(named)

    hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in decoder.layers]
    try:
        decoder(input_ids=torch.from_numpy(np.asarray(prompt, np.int64))[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return inputs, arguments


def _rms(values: Tensor) -> Tensor:
    """Over the first dimension, prompts."""
    return values.square().mean(dim=0).sqrt()


def _build_report(engine: Path) -> list[dict[str, Any]]:
    report: list[dict[str, Any]] = read_json(engine / f"{REPORT}.json")
    return report
