"""A checkpoint -> an engine directory: fuse, smooth, quantise, report, write."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from rgalign.errors import ConfigError
from rgalign.reasoner.engine.artifact import REPORT, Manifest, to_bytes, write_artifact
from rgalign.reasoner.engine.calibrate import MatrixError, matrix_error, observe
from rgalign.reasoner.engine.checkpoint import Checkpoint, DecoderLayer, checkpoint_directory, read_config
from rgalign.reasoner.engine.quantize import (
    ACTIVATION_LEVELS,
    EngineDtype,
    activation_levels,
    quantize_rows,
    smooth,
)
from rgalign.reasoner.prefix_tree import TokenIds
from rgalign.reasoner.pretrained import model_fingerprint


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


def build_engine(ref: str, out: Path, dtype: str, calibration: Calibration | None = None) -> Manifest:
    """Writes the engine of model ``ref`` to ``out``, atomically.

    Raises:
        ConfigError: bf16, which CPUs of this engine do not compute, an unknown dtype or an unsupported model.
        ModelNotFoundError, DataError: no checkpoint, or one with missing, misshapen or non-finite tensors.
    """
    if dtype not in ACTIVATION_LEVELS:
        required = " or ".join(ACTIVATION_LEVELS) + (" (bf16 is for CUDA only)" if dtype == "bf16" else "")
        raise ConfigError(where="engine dtype", required=required, received=repr(dtype))
    engine_dtype: EngineDtype = dtype  # type: ignore[assignment]  # just checked
    directory = checkpoint_directory(ref)
    config, frequencies = read_config(directory)
    levels = activation_levels(
        engine_dtype, max(config.hidden, config.intermediate, config.num_heads * config.head_dim)
    )
    seen = observe(ref, calibration.prompts) if calibration and dtype != "fp32" else None
    tensors = {"inverse_frequencies": torch.from_numpy(frequencies)}
    errors: list[MatrixError] = []
    with Checkpoint.open(directory) as checkpoint:
        tensors["embed"] = checkpoint.embedding(config)
        tensors["final_norm"] = checkpoint.final_norm(config)
        for index in range(config.num_layers):
            layer = checkpoint.layer(config, index)
            rows = {name: of.rows for name, of in seen[index].items()} if seen else {}
            if seen and calibration and calibration.alpha is not None:
                layer, factors = smooth(layer, {name: of.peaks for name, of in seen[index].items()}, calibration.alpha)
                rows = {name: values / factors.get(name, 1.0) for name, values in rows.items()}
            tensors.update({f"layers.{index}.{name}": value for name, value in _tensors(layer, dtype).items()})
            if dtype != "fp32":
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
    return write_artifact(out, tensors, manifest, _reports(errors))


def _tensors(layer: DecoderLayer, dtype: str) -> dict[str, torch.Tensor]:
    tensors = dict(layer.norms)
    for name, weight in layer.weights.items():
        if dtype == "fp32":
            tensors[f"{name}.weight"] = weight
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
