"""Int8 weights, a scale per output channel; and SmoothQuant's shift of outliers from activations to weights.

    codes[n, k] = round(W[n, k] / s_n),  s_n = max_k |W[n, k]| / 127
    f_k = max|X_k|^alpha / max_n |W[n, k]|^(1 - alpha);   X / f, W * f   (Xiao et al., arXiv 2211.10438, equation 4)

``f`` goes into what makes X: the norm before qkv and gate_up, the rows of up before down. The product stays the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch

from rgalign.reasoner.engine.checkpoint import LAYOUT, DecoderLayer

EngineDtype: TypeAlias = Literal["fp32", "int8", "int8a12"]  # that a CPU computes
ArtifactDtype: TypeAlias = EngineDtype | Literal["bf16"]
LEVELS = 127
ACTIVATION_LEVELS = {"fp32": 0, "bf16": 0, "int8": LEVELS, "int8a12": 2047}


def activation_levels(dtype: ArtifactDtype, widest: int) -> int:
    """Levels a side of an activation code: 0 for floats; under 12 bits where a sum of ``widest`` could overflow."""
    return min(ACTIVATION_LEVELS[dtype], (2**31 - 1) // (LEVELS * widest))


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, K] float32 to int8 codes [N, K] and scales [N]."""
    scales = weight.abs().amax(dim=1) / LEVELS
    inverse = torch.where(scales > 0, 1.0 / scales, 0.0)
    return (weight * inverse[:, None]).round().clamp_(-LEVELS, LEVELS).to(torch.int8), scales


def smooth(
    layer: DecoderLayer, peaks: Mapping[str, torch.Tensor], alpha: float
) -> tuple[DecoderLayer, dict[str, torch.Tensor]]:
    """The same layer with flatter inputs, and what they are divided by.

    Args:
        peaks: max|X_k| of the inputs of ``qkv``, ``gate_up`` and ``down``.
        alpha: how much of the outliers goes to the weights: 0 none, 1 all.
    """
    norms, weights, biases = dict(layer.norms), dict(layer.weights), dict(layer.biases)
    factors = {name: smoothing_factors(peaks[name], weights[name], alpha) for name in ("qkv", "gate_up", "down")}
    for name in factors:
        weights[name] = weights[name] * factors[name]
    norms["input_norm"] = norms["input_norm"] / factors["qkv"]
    norms["post_norm"] = norms["post_norm"] / factors["gate_up"]
    weights["gate_up"] = _divide_up(weights["gate_up"], factors["down"])
    if "gate_up" in biases:
        biases["gate_up"] = _divide_up(biases["gate_up"], factors["down"])
    return DecoderLayer(norms, weights, biases), factors


def smoothing_factors(peaks: torch.Tensor, weight: torch.Tensor, alpha: float) -> torch.Tensor:
    """[K] powers of two (so that folding them rounds nothing), 1 where a channel is silent."""
    columns = weight.abs().amax(dim=0)
    factors = peaks.clamp_min(1e-5) ** alpha / columns.clamp_min(1e-5) ** (1 - alpha)
    factors = torch.where((peaks > 0) & (columns > 0), factors, 1.0)
    return torch.exp2(torch.log2(factors / factors.median()).round().clamp(-16, 16))


def _divide_up(gate_up: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    parts = gate_up.reshape(-1, 2, LAYOUT, *gate_up.shape[1:]).clone()
    parts[:, 1] /= factors.reshape(-1, LAYOUT, *[1] * (gate_up.dim() - 1))
    return parts.reshape(gate_up.shape)
