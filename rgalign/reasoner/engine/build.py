"""A checkpoint -> an engine directory: fuse, smooth, quantise, correct, report, write.

Rounding errors of the weights meet the same large activations in every prompt, and so move all states alike. Measured
on Boston (SmolLM2, 8-bit weights), that shift is 2.5 standard deviations in one dimension and five sixths of the error.
A calibrated engine knows it, and its reasoner takes it off (bias correction, Nagel et al., arXiv 1906.04721, 4.2;
at the output only).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from rgalign.errors import ConfigError
from rgalign.files import sha256_json
from rgalign.prompt import PromptEncoder
from rgalign.reasoner.engine.artifact import REPORT, STATE_SHIFT, Manifest, to_bytes, write_artifact
from rgalign.reasoner.engine.calibrate import MatrixError, Observed, matrix_error, observe
from rgalign.reasoner.engine.checkpoint import Checkpoint, DecoderLayer, checkpoint_directory, read_config
from rgalign.reasoner.engine.quantize import (
    ACTIVATION_LEVELS,
    ArtifactDtype,
    activation_levels,
    quantize_rows,
    smooth,
)
from rgalign.reasoner.engine.reasoner import load_engine
from rgalign.reasoner.prefix_tree import TokenIds
from rgalign.reasoner.pretrained import model_fingerprint

FLOATS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Calibration:
    """Whole prompts to observe, and what of them is kept.

    Args:
        prompts: token ids, constant prefix included.
        alpha: SmoothQuant's; None observes for the report only.
        prompt: what the manifest says of prefix and template.
    """

    prompts: Sequence[TokenIds]
    alpha: float | None = None
    prompt: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, encoder: PromptEncoder, prompts: Sequence[TokenIds], *, count: int, alpha: float | None = None
    ) -> Calibration:
        """``count`` of the prompts, spread evenly, after the encoder's constant prefix."""
        prefix = np.asarray(encoder.prefix_ids, dtype=np.int32)
        chosen = np.unique(np.linspace(0, len(prompts) - 1, count).astype(int))
        named = {
            "template": encoder.template.name,
            "frame": sha256_json([encoder.prefix_ids, encoder.suffix_ids]),
            "prefix_ids": list(encoder.prefix_ids),
        }
        return cls([np.concatenate([prefix, prompts[row]]) for row in chosen], alpha, named)


def build_engine(ref: str, out: Path, dtype: str, calibration: Calibration | None = None) -> Manifest:
    """Writes the engine of model ``ref`` to ``out``, atomically.

    Raises:
        ConfigError: an unknown dtype or an unsupported model.
        ModelNotFoundError, DataError: no checkpoint, or one with missing, misshapen or non-finite tensors.
    """
    if dtype not in ACTIVATION_LEVELS:
        raise ConfigError(where="engine dtype", required=" or ".join(ACTIVATION_LEVELS), received=repr(dtype))
    engine_dtype: ArtifactDtype = dtype  # type: ignore[assignment]  # just checked
    directory = checkpoint_directory(ref)
    config, frequencies = read_config(directory)
    levels = activation_levels(
        engine_dtype, max(config.hidden, config.intermediate, config.num_heads * config.head_dim)
    )
    seen = observe(ref, calibration.prompts) if calibration and levels else None
    tensors = {"inverse_frequencies": torch.from_numpy(frequencies)}
    errors: list[MatrixError] = []
    with Checkpoint.open(directory) as checkpoint:
        tensors["embed"] = checkpoint.embedding(config)
        tensors["final_norm"] = checkpoint.final_norm(config)
        for index in range(config.num_layers):
            layer = checkpoint.layer(config, index)
            inputs = seen.layers[index] if seen else {}
            rows = {name: of.rows for name, of in inputs.items()}
            if seen and calibration and calibration.alpha is not None:
                layer, factors = smooth(layer, {name: of.peaks for name, of in inputs.items()}, calibration.alpha)
                rows = {name: values / factors.get(name, 1.0) for name, values in rows.items()}
            tensors.update({f"layers.{index}.{name}": value for name, value in _tensors(layer, dtype).items()})
            if levels:
                for name, weight in layer.weights.items():
                    errors.append(matrix_error(index, name, weight, rows.get(name), levels))
    made = {"alpha": calibration.alpha, "prompts": len(calibration.prompts)} if calibration and seen else {}
    manifest = Manifest(
        dtype=engine_dtype,
        config=config,
        model=model_fingerprint(ref),
        source=ref,
        calibration=made,
        prompt=dict(calibration.prompt) if calibration else {},
        files={},
    )
    if seen and calibration:
        tensors[STATE_SHIFT] = _state_shift(tensors, manifest, calibration.prompts, seen)
    return write_artifact(out, tensors, manifest, _reports(errors))


def _state_shift(
    tensors: Mapping[str, torch.Tensor], manifest: Manifest, prompts: Sequence[TokenIds], seen: Observed
) -> torch.Tensor:
    """[D] mean of this engine's states minus the model's own, over the prompts."""
    with TemporaryDirectory() as temporary:
        directory = Path(temporary) / "engine"
        write_artifact(directory, tensors, manifest, {})
        return (load_engine(directory, torch.get_num_threads()).embed(prompts) - seen.states).mean(dim=0)


def _tensors(layer: DecoderLayer, dtype: str) -> dict[str, torch.Tensor]:
    tensors = dict(layer.norms)
    for name, weight in layer.weights.items():
        if dtype in FLOATS:
            tensors[f"{name}.weight"] = weight.to(FLOATS[dtype])
        else:
            tensors[f"{name}.weight"], tensors[f"{name}.scale"] = quantize_rows(weight)
        if name in layer.biases:
            tensors[f"{name}.bias"] = layer.biases[name]
    return tensors


def _reports(errors: list[MatrixError]) -> dict[str, bytes]:
    if not errors:
        return {}
    rows = [asdict(error) for error in errors]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return {f"{REPORT}.json": to_bytes(rows), f"{REPORT}.csv": text.getvalue().encode()}
