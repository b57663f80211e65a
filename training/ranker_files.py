"""A trained ranker on disk: everything that rebuilds it, and the hashes of what it was trained on.

model/
  weights.safetensors   parameters and buffers, the semantic matrix included
  ranker.json           configuration, numeric statistics, provenance, sha256 of the weights
  schema.yaml           intents.parquet
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from rgalign.data.dataset import Dataset
from rgalign.data.encode import NumericStats, SessionEncoder
from rgalign.errors import ProvenanceError
from rgalign.files import read_json, sha256_file, sync_directory, write_json
from rgalign.intents import IntentCatalog
from rgalign.models import Ranker, RankerConfig, load_weights, save_weights
from rgalign.schema import FeatureSchema
from rgalign.training.latents import LatentStore

FORMAT = 1


@dataclass(frozen=True)
class LoadedRanker:
    """A ranker in evaluation mode and what encodes its sessions.

    Args:
        latents: provenance of the latent queries it was trained on, None without a query tower.
        hash: sha256 of the weights.
    """

    ranker: Ranker
    encoder: SessionEncoder
    config: RankerConfig
    schema: FeatureSchema
    catalog: IntentCatalog
    latents: dict[str, Any] | None
    hash: str
    provenance: dict[str, Any] = field(default_factory=dict)

    def require_dataset(self, dataset: Dataset) -> None:
        """Refuses sessions that the ranker's codes do not fit."""
        for what, ours, theirs in (
            ("schema", self.schema.hash, dataset.schema.hash),
            ("catalogue", self.catalog.hash, dataset.catalog.hash),
        ):
            if ours != theirs:
                required = f"the {what} that the ranker was trained on ({ours[:12]})"
                raise ProvenanceError(where=str(dataset.path), required=required, received=theirs[:12])

    def require_latents(self, store: LatentStore) -> None:
        """Refuses latent queries of another model, template, pooling or precision."""
        if self.latents is not None:
            store.require(self.latents)


def save_ranker(
    path: Path,
    ranker: Ranker,
    config: RankerConfig,
    encoder: SessionEncoder,
    *,
    latents: dict[str, Any] | None,
    provenance: dict[str, Any],
) -> None:
    """Writes the directory ``path`` whole, replacing a former one."""
    building = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    save_weights(ranker, building / "weights.safetensors")
    encoder.schema.save(building / "schema.yaml")
    encoder.catalog.write_parquet(building / "intents.parquet")
    values = {
        "format": FORMAT,
        "config": config.model_dump(mode="json"),
        "statistics": encoder.stats.to_json(),
        "schema": encoder.schema.hash,
        "catalogue": encoder.catalog.hash,
        "latents": latents,
        "weights_sha256": sha256_file(building / "weights.safetensors"),
        "provenance": provenance,
    }
    write_json(building / "ranker.json", values)
    sync_directory(building)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(building, path)
    sync_directory(path.parent)


def load_ranker(run_dir: Path) -> LoadedRanker:
    """The ranker of a finished run (or of its ``model`` directory).

    Raises:
        ProvenanceError: no finished run, a damaged one, or files that do not belong together.
    """
    run_dir = Path(run_dir)
    path = run_dir if (run_dir / "ranker.json").is_file() else run_dir / "model"
    if not (path / "ranker.json").is_file():
        required = "a trained ranker (`rgalign train stage1` writes one)"
        raise ProvenanceError(where=str(run_dir), required=required, received="no model/ranker.json")
    values = read_json(path / "ranker.json")
    catalog = IntentCatalog.read_parquet(path / "intents.parquet")
    schema = FeatureSchema.load(path / "schema.yaml").bind(catalog)
    received = {
        "format": FORMAT,
        "schema": schema.hash,
        "catalogue": catalog.hash,
        "weights_sha256": sha256_file(path / "weights.safetensors"),
    }
    for key, value in received.items():
        if values[key] != value:
            raise ProvenanceError(where=str(path), required=f"{key} {values[key]}", received=str(value))
    config: RankerConfig = TypeAdapter(RankerConfig).validate_python(values["config"])
    ranker = load_weights(path / "weights.safetensors", config, schema, catalog)
    encoder = SessionEncoder(schema, catalog, NumericStats.from_json(values["statistics"]))
    return LoadedRanker(
        ranker, encoder, config, schema, catalog, values["latents"], values["weights_sha256"], values["provenance"]
    )
