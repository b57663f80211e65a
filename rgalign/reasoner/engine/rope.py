"""Inverse frequencies of rotary position embeddings, as transformers 5 computes them (modeling_rope_utils.py).

f_i = theta^(-2 i / d),  i < d / 2         default; within the trained length also "dynamic"
linear     f_i / factor
llama3     f_i / factor for long waves, f_i for short ones, and between them in between (Llama 3.1)
yarn       the same idea by rotations instead of wavelengths (arXiv 2309.00071); cosines and sines scaled too
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rgalign.errors import ConfigError

Frequencies = NDArray[np.float32]


def rope_frequencies(config: Mapping[str, Any], head_dim: int) -> tuple[Frequencies, float]:
    """[head_dim / 2] frequencies and the factor of cosines and sines, from a Hugging Face ``config.json``.

    Raises:
        ConfigError: a kind of scaling that is not among those above.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = given.get("rope_type") or given.get("type") or "default"
    theta = float(given.get("rope_theta") or config.get("rope_theta") or 10000.0)
    if float(given.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ConfigError(where="config.json rope", required="a rotation of whole heads", received=str(dict(given)))
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = (1.0 / np.float32(theta) ** exponents).astype(np.float32)
    if kind in ("default", "dynamic"):
        return frequencies, 1.0
    if kind == "linear":
        return (frequencies / np.float32(given["factor"])).astype(np.float32), 1.0
    if kind == "llama3":
        return _llama3(frequencies, given), 1.0
    if kind == "yarn":
        return _yarn(frequencies, given, theta, head_dim, int(config["max_position_embeddings"]))
    raise ConfigError(
        where="config.json rope_type", required="default, dynamic, linear, llama3 or yarn", received=repr(kind)
    )


def _llama3(frequencies: Frequencies, given: Mapping[str, Any]) -> Frequencies:
    factor, low, high = (float(given[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    length = float(given["original_max_position_embeddings"])
    wavelengths = 2 * math.pi / frequencies.astype(np.float64)
    share = np.clip((length / wavelengths - low) / (high - low), 0.0, 1.0)  # of the unscaled frequency
    return (frequencies * (share + (1 - share) / factor)).astype(np.float32)


def _yarn(
    frequencies: Frequencies, given: Mapping[str, Any], theta: float, head_dim: int, max_positions: int
) -> tuple[Frequencies, float]:
    length = float(given["original_max_position_embeddings"])
    factor = float(given["factor"] or max_positions / length)

    def dimension(rotations: float) -> float:
        return head_dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(float(given.get("beta_fast") or 32)), dimension(float(given.get("beta_slow") or 1))
    if given.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - low) / ((high - low) or 0.001), 0.0, 1.0)
    scaled = frequencies / factor * ramp + frequencies * (1 - ramp)
    return scaled.astype(np.float32), _yarn_scale(factor, given)


def _yarn_scale(factor: float, given: Mapping[str, Any]) -> float:
    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if given.get("attention_factor") is not None:
        return float(given["attention_factor"])
    mscale, all_dim = given.get("mscale"), given.get("mscale_all_dim")
    return scale(mscale) / scale(all_dim) if mscale and all_dim else scale(1.0)
