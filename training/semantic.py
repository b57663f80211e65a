"""The cached text vectors of a catalogue, and whose they are.

    semantic.safetensors   semantic [N, S] float32, row n for catalogue row n
    semantic.json          hashes of catalogue, rendered texts, model and training split; configuration; tensor's sha256

Vectors of another catalogue are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from rgalign.errors import ProvenanceError
from rgalign.files import read_json, sha256_file, sha256_json, write_json
from rgalign.intents import IntentCatalog
from rgalign.training.trainer_state import write_tensors

MATRIX, PROVENANCE = "semantic.safetensors", "semantic.json"
FORMAT = 1


def write_semantic(directory: Path, matrix: Tensor, catalog: IntentCatalog, inputs: Mapping[str, Any]) -> None:
    """Matrix first, provenance last. ``inputs``: everything that decided the vectors."""
    write_tensors({"semantic": matrix.float()}, directory / MATRIX)
    values = {
        "format": FORMAT,
        "num_intents": len(catalog),
        "dim": matrix.shape[1],
        "catalogue": catalog.hash,
        "hash": sha256_json(dict(inputs)),
        "sha256": sha256_file(directory / MATRIX),
        **inputs,
    }
    write_json(directory / PROVENANCE, values)


def read_provenance(directory: Path) -> dict[str, Any]:
    """Raises ProvenanceError where there are no text vectors."""
    path = Path(directory) / PROVENANCE
    if not path.is_file():
        required = "a directory of text vectors (rgalign.training.hllm.build_semantic writes one)"
        raise ProvenanceError(where=str(directory), required=required, received=f"no {PROVENANCE}")
    values: dict[str, Any] = read_json(path)
    return values


def require_untrained(directory: Path | None) -> None:
    """Refuses vectors that have seen clicks where a ranker must not have: in cross-fitting.

    Raises:
        ProvenanceError: they were trained on a split's clicks.
    """
    if directory is not None and "train" in read_provenance(directory):
        required = "text vectors that learned from no click (train hllm --set tune=none), as every fold reads them"
        raise ProvenanceError(where=str(directory), required=required, received="vectors trained on clicks")


def load_semantic(directory: Path, catalog: IntentCatalog) -> Tensor:
    """[N, S] float32, row n for catalogue row n.

    Raises:
        ProvenanceError: vectors of another catalogue, or a file that is not the one they were written with.
    """
    values = read_provenance(directory)
    where = str(directory)
    if values["catalogue"] != catalog.hash:
        required = f"text vectors of catalogue {catalog.hash[:12]}"
        raise ProvenanceError(where=where, required=required, received=f"of catalogue {values['catalogue'][:12]}")
    path = Path(directory) / MATRIX
    if not path.is_file() or sha256_file(path) != values["sha256"]:
        received = "another or damaged file" if path.is_file() else "no such file"
        raise ProvenanceError(where=str(path), required=f"sha256 {values['sha256'][:12]}", received=received)
    matrix: Tensor = load_file(path)["semantic"]
    assert matrix.shape == (len(catalog), values["dim"])
    return matrix
