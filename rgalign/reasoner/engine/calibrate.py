"""What the matrices of a model see on real prompts, and what quantisation does to their products there.

Build-time only: the model runs in transformers, whose matrices are hooked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from rgalign.errors import DataError
from rgalign.reasoner.engine.checkpoint import checkpoint_directory
from rgalign.reasoner.engine.quantize import quantize_rows
from rgalign.reasoner.prefix_tree import TokenIds
from rgalign.reasoner.pretrained import load_model

HOOKED = {"qkv": "self_attn.q_proj", "out": "self_attn.o_proj", "gate_up": "mlp.gate_proj", "down": "mlp.down_proj"}
KEPT_ROWS = 256  # of a matrix's inputs, spread over all prompts


@dataclass(frozen=True)
class Seen:
    """Inputs of one matrix: some rows [n, in], and the largest magnitude of each channel [in] over all."""

    rows: torch.Tensor
    peaks: torch.Tensor


LayerSeen: TypeAlias = dict[str, Seen]  # of qkv, out, gate_up, down


@dataclass(frozen=True)
class Observed:
    """What a model read and answered: inputs of each layer's matrices, and [B, D] states after the final norm."""

    layers: list[LayerSeen]
    states: torch.Tensor


@dataclass(frozen=True)
class MatrixError:
    """Error of one matrix product on observed inputs; without any, of the weight alone.

    cosine: of exact and quantised product; relative: norm of their difference over the exact one's.
    """

    layer: int
    matrix: str
    of: str  # "product" or "weight"
    cosine: float
    relative: float


def observe(ref: str, prompts: Sequence[TokenIds]) -> Observed:
    """Runs whole prompts through the model ``ref`` and keeps what its matrices read, and each prompt's last state."""
    if not prompts:
        raise DataError(where="calibration", required="at least one prompt", received="none")
    model = load_model(str(checkpoint_directory(ref)))
    decoder: Any = model.get_decoder()
    found: list[dict[str, list[torch.Tensor]]] = [{name: [] for name in HOOKED} for _ in decoder.layers]
    peaks: list[dict[str, torch.Tensor]] = [{} for _ in decoder.layers]
    per_prompt = max(2, KEPT_ROWS // len(prompts))

    def keep(layer: int, name: str, values: torch.Tensor) -> None:
        found[layer][name].append(values[torch.linspace(0, len(values) - 1, min(per_prompt, len(values))).long()])
        peak = values.abs().amax(dim=0)
        peaks[layer][name] = torch.maximum(peaks[layer].get(name, peak), peak)

    hooks = [
        layer.get_submodule(path).register_forward_pre_hook(
            lambda _, args, index=index, name=name: keep(index, name, args[0][0])
        )
        for index, layer in enumerate(decoder.layers)
        for name, path in HOOKED.items()
    ]
    states: list[torch.Tensor] = []
    with torch.no_grad():
        for prompt in prompts:
            ids = torch.from_numpy(np.asarray(prompt, dtype=np.int64))[None]
            states.append(decoder(input_ids=ids, use_cache=False).last_hidden_state[0, -1])
    for hook in hooks:
        hook.remove()
    layers = [
        {name: Seen(torch.cat(rows), peaks[layer][name]) for name, rows in matrices.items()}
        for layer, matrices in enumerate(found)
    ]
    return Observed(layers, torch.stack(states))


def matrix_error(layer: int, name: str, weight: torch.Tensor, rows: torch.Tensor | None, levels: int) -> MatrixError:
    """Of a matrix [out, in] and its inputs [n, in], both after smoothing."""
    codes, scales = quantize_rows(weight)
    quantized = codes.float() * scales[:, None]
    if rows is None:
        return _error(layer, name, "weight", weight, quantized)
    step = rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-30) / levels
    return _error(layer, name, "product", rows @ weight.T, (rows / step).round() * step @ quantized.T)


def _error(layer: int, name: str, of: str, exact: torch.Tensor, found: torch.Tensor) -> MatrixError:
    cosine = torch.nn.functional.cosine_similarity(exact.flatten(), found.flatten(), dim=0)
    relative = (found - exact).norm() / exact.norm().clamp_min(1e-30)
    return MatrixError(layer, name, of, round(float(cosine), 8), round(float(relative), 8))
