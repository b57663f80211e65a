"""Writing a bundle: beside its place, synced, then renamed. A killed writer leaves nothing by its name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from safetensors.torch import save_file
from torch import Tensor, nn

from rgalign.bundle.bundle import INTENT_TABLE, TOWER, read_bundle
from rgalign.bundle.manifest import (
    CATALOGUE,
    ENGINE,
    FORMAT,
    INDEX,
    MANIFEST,
    QUERY_TOWER,
    SCHEMA,
    TOKENIZER,
    USER_TOWER,
    Calibration,
    Manifest,
    ReasonerPart,
    describe_files,
    manifest_bytes,
    sealed,
)
from rgalign.data.encode import NumericStats
from rgalign.errors import ConfigError
from rgalign.files import sync_directory, write_atomic
from rgalign.index import IntentIndex, write_index
from rgalign.index.storage import LOCK
from rgalign.intents import IntentCatalog
from rgalign.models import RankerConfig
from rgalign.schema import FeatureSchema
from rgalign.scoring import Projection


@dataclass(frozen=True)
class BundleParts:
    """What a bundle is made of.

    Args:
        ranker: sha256 of the run's weights.
        intent_table: where histories read the intents' id table.
        projection, reasoner, engine, tokenizer, full: together, or all None for a ranker without latent queries.
        engine: directory that ``rgalign engine build`` wrote; tokenizer: a file.
    """

    schema: FeatureSchema
    catalog: IntentCatalog
    statistics: NumericStats
    ranker: str
    model: RankerConfig
    omega: float
    index: IntentIndex
    user_tower: nn.Module
    intent_table: Tensor | None
    user_only: Calibration
    projection: Projection | None = None
    reasoner: ReasonerPart | None = None
    engine: Path | None = None
    tokenizer: Path | None = None
    full: Calibration | None = None


def write_bundle(parts: BundleParts, out: Path) -> Manifest:
    """Writes the directory ``out``, which must not be there, and reads it back before it gets its name.

    Raises:
        ConfigError: ``out`` exists. DataError, ProvenanceError: the parts do not belong together.
    """
    out = Path(out)
    _require_absent(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{uuid4().hex[:8]}.tmp")
    temporary.mkdir()
    try:
        _write_files(parts, temporary)
        manifest = _seal(parts, temporary)
        read_bundle(temporary)
        for folder, _, files in os.walk(temporary):
            for name in files:
                with open(Path(folder) / name, "rb") as file:
                    os.fsync(file.fileno())
            sync_directory(Path(folder))
        _require_absent(out)  # a rename would replace an empty directory without a word
        os.rename(temporary, out)
        sync_directory(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def _require_absent(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise ConfigError(where=str(out), required="a new directory: bundles are not written over", received="one")


def _write_files(parts: BundleParts, directory: Path) -> None:
    parts.schema.save(directory / SCHEMA)
    parts.catalog.write_parquet(directory / CATALOGUE)
    write_index(parts.index, directory / INDEX)
    (directory / INDEX / LOCK).unlink(missing_ok=True)
    tensors = {TOWER + name: tensor for name, tensor in parts.user_tower.state_dict().items()}
    if parts.intent_table is not None:
        tensors[INTENT_TABLE] = parts.intent_table
    _save(tensors, directory / USER_TOWER)
    if parts.reasoner is not None:
        assert parts.projection is not None
        assert parts.projection.bias is not None
        assert parts.engine is not None
        assert parts.tokenizer is not None
        _save({"weight": parts.projection.weight, "bias": parts.projection.bias}, directory / QUERY_TOWER)
        shutil.copytree(parts.engine, directory / ENGINE)
        shutil.copyfile(parts.tokenizer, directory / TOKENIZER)


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path)


def _seal(parts: BundleParts, directory: Path) -> Manifest:
    provenance = {name: parts.index.provenance[name] for name in ("intent_tower", "text_encoder")}
    values = {
        "format": FORMAT,
        "ranker": parts.ranker,
        "model": parts.model.model_dump(mode="json"),
        "dim": parts.index.dim,
        "omega": parts.omega,
        "statistics": parts.statistics.to_json(),
        "schema_hash": parts.schema.hash,
        "catalogue": parts.catalog.hash,
        "index": provenance,
        "full": None if parts.full is None else parts.full.model_dump(mode="json"),
        "user_only": parts.user_only.model_dump(mode="json"),
        "reasoner": None if parts.reasoner is None else parts.reasoner.model_dump(mode="json"),
        "files": {name: file.model_dump(mode="json") for name, file in describe_files(directory).items()},
    }
    complete = sealed(values)
    write_atomic(directory / MANIFEST, manifest_bytes(complete))
    return Manifest.model_validate(complete)
