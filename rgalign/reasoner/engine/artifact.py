"""The directory of a built engine: tensors.safetensors and manifest.json, which has the hash of all of it.

Tensors are not yet in panels: those depend on the processor, and are made when it is loaded.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rgalign import _C
from rgalign.errors import ConfigError, DataError
from rgalign.files import read_json, sha256_file, sha256_json, sync_directory, write_json
from rgalign.reasoner.engine.checkpoint import DecoderConfig, as_numpy
from rgalign.reasoner.engine.quantize import ACTIVATION_LEVELS, ArtifactDtype, activation_levels

SEAL = "seal"  # of the manifest: hash of all else that it says
STATE_SHIFT = "state_shift"  # [D], by which quantisation moves every state; absent if it was not calibrated
FORMAT = 1  # raise when a tensor's meaning changes
MANIFEST, TENSORS, REPORT = "manifest.json", "tensors.safetensors", "quantization"
INSTRUCTION_SETS = tuple(_C.engine_instruction_sets())  # what this machine can compute with, the best first


@dataclass(frozen=True)
class Manifest:
    """Args:
    dtype: of the weights and activations in matrix products.
    config: sizes; model: fingerprint of the checkpoint; source: how it was named.
    calibration: on how many prompts, and how outliers were moved; empty if it was not calibrated.
    prompt: prefix_ids, template and its hash, of the dataset it was calibrated on; may be empty.
    files: name -> sha256 of every other file.
    """

    dtype: ArtifactDtype
    config: DecoderConfig
    model: str
    source: str
    calibration: dict[str, Any]
    prompt: dict[str, Any]
    files: dict[str, str]

    @property
    def hash(self) -> str:
        """Of all that decides a vector."""
        return sha256_json([FORMAT, self.dtype, asdict(self.config), self.files[TENSORS]])


def write_artifact(
    out: Path, tensors: Mapping[str, torch.Tensor], manifest: Manifest, reports: Mapping[str, bytes]
) -> Manifest:
    """Writes the directory beside ``out`` and renames it; an engine that is there already is replaced."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{uuid4().hex[:8]}.tmp")
    temporary.mkdir()
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary / TENSORS)
        for name, data in reports.items():
            (temporary / name).write_bytes(data)
        names = (TENSORS, *reports)
        for name in names:
            with open(temporary / name, "rb") as file:
                os.fsync(file.fileno())
        written = Manifest(**{**vars(manifest), "files": {name: sha256_file(temporary / name) for name in names}})
        values = {"format": FORMAT, **asdict(written)}
        write_json(temporary / MANIFEST, {**values, SEAL: sha256_json(values)})
        if out.exists():
            if not (out / MANIFEST).is_file():
                raise ConfigError(
                    where=f"{out}", required="a new directory or an engine's", received="another directory"
                )
            shutil.rmtree(out)
        os.replace(temporary, out)
        sync_directory(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return written


def read_manifest(directory: Path) -> Manifest:
    """The checked manifest; its own hash and every file's are compared.

    Raises:
        DataError: no engine, one of another format, or one that is damaged.
    """
    where = f"engine {directory}"
    if not (directory / MANIFEST).is_file():
        raise DataError(where=where, required=f"a {MANIFEST} in it", received="none")
    try:
        values = dict(read_json(directory / MANIFEST))
        seal, expected = values.pop(SEAL, "none"), sha256_json(values)
        found = values.pop("format")
        manifest = Manifest(**{**values, "config": DecoderConfig(**values["config"])})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            where=f"{directory / MANIFEST}", required="an engine's manifest", received=str(error)
        ) from error
    if found != FORMAT:
        raise DataError(where=where, required=f"format {FORMAT}", received=f"{found}")
    if seal != expected:
        required = f"{SEAL} {expected} (damaged, or built before there were seals: build it again)"
        raise DataError(where=f"{directory / MANIFEST}", required=required, received=f"{seal}")
    if manifest.dtype not in ACTIVATION_LEVELS or TENSORS not in manifest.files:
        received = f"dtype {manifest.dtype!r}, files {sorted(manifest.files)}"
        raise DataError(where=where, required=f"{' or '.join(ACTIVATION_LEVELS)} with {TENSORS}", received=received)
    for name, expected in manifest.files.items():
        path = directory / name
        received = sha256_file(path) if path.is_file() and Path(name).name == name else "no such file"
        if received != expected:
            raise DataError(where=f"{path}", required=f"sha256 {expected}", received=received)
    return manifest


def load_model(directory: Path, manifest: Manifest, instructions: str = "auto") -> _C.EngineModel:
    """The weights in this processor's panels. ``manifest`` is :func:`read_manifest`'s, so the file is whole.

    Args:
        instructions: one of ``INSTRUCTION_SETS``, for tests and benchmarks; "auto" is the first. The same bits.

    Raises:
        ConfigError: bf16, which this engine computes on a GPU only; an instruction set that is not here.
        DataError: a tensor is missing or has not the size that the manifest says, or a size is none of an engine.
    """
    config = manifest.config
    if manifest.dtype == "bf16":
        required = "fp32, int8 or int8a12 on a CPU (bf16 is for CUDA only)"
        raise ConfigError(where=f"engine {directory}", required=required, received="bf16")
    if instructions not in ("auto", *INSTRUCTION_SETS):
        required = f"auto or one of {', '.join(INSTRUCTION_SETS)}"
        raise ConfigError(where="engine instructions", required=required, received=repr(instructions))
    try:
        widest = max(config.hidden, config.intermediate, config.num_heads * config.head_dim)
        shape = {**asdict(config), "activation_levels": activation_levels(manifest.dtype, widest)}
        with safe_open(str(directory / TENSORS), framework="pt") as file:
            unused = set(file.keys()) - {STATE_SHIFT}

            def find(name: str) -> Any:
                unused.discard(name)
                return as_numpy(file.get_tensor(name))

            embed = find("embed")
            halved = embed.dtype != "float32"
            model = _C.EngineModel(
                shape,
                embed_bf16=embed if halved else None,
                embed_fp32=None if halved else embed,
                final_norm=find("final_norm"),
                inverse_frequencies=find("inverse_frequencies"),
                instructions=instructions,
            )
            for index in range(config.num_layers):
                start = f"layers.{index}."
                names = sorted(name for name in unused if name.startswith(start))
                model.add_layer({name.removeprefix(start): find(name) for name in names})
        if unused:
            raise ValueError(f"{len(unused)} more than the manifest's layers have, the first {min(unused)}")
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise DataError(where=f"{directory / TENSORS}", required="an engine's tensors", received=str(error)) from error
    return model


def load_state_shift(directory: Path) -> torch.Tensor | None:
    """What :func:`load_model` leaves out; the same errors. The directory's manifest has been read."""
    try:
        with safe_open(str(directory / TENSORS), framework="pt") as file:
            if STATE_SHIFT not in set(file.keys()):
                return None
            shift: torch.Tensor = file.get_tensor(STATE_SHIFT)
            if list(shift.shape) != file.get_slice("final_norm").get_shape():
                raise ValueError(f"{STATE_SHIFT} {list(shift.shape)}")
    except (SafetensorError, ValueError) as error:
        raise DataError(where=f"{directory / TENSORS}", required="an engine's tensors", received=str(error)) from error
    return shift


def to_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
