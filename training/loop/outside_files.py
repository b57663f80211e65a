"""Hashes of what a loop reads from outside its run directory."""

from __future__ import annotations

from pathlib import Path

from rgalign.data.dataset import Dataset
from rgalign.training.semantic import read_provenance

LEARNED_FROM = ("train", "valid")


def dataset_hashes(path: Path, splits: tuple[str, ...] = LEARNED_FROM) -> dict[str, str]:
    dataset = Dataset.open(path)
    fingerprints = {split: dataset.fingerprint(split) for split in splits}
    return {"schema": dataset.schema.hash, "catalogue": dataset.catalog.hash, **fingerprints}


def semantic_hash(path: Path | None) -> str | None:
    if path is None:
        return None
    found: str = read_provenance(path)["sha256"]
    return found
