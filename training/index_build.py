"""From a training run to an IntentIndex: the intent tower's vectors, and those of later intents, by text alone.

provenance   intent_tower   hash of the tower's weights and buffers, the text vectors it was trained with among them
             text_encoder   hash of those text vectors, "none" for ids only
             catalogue      hash of the intents' ids and texts
             ranker         sha256 of the run's weights, by which a server pairs index and towers
"""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from rgalign.errors import ConfigError, DataError, ProvenanceError
from rgalign.index.changes import add_intents
from rgalign.index.intent_index import IntentIndex, build_index
from rgalign.index.precision import Precision
from rgalign.intents import IntentCatalog
from rgalign.training.experiment import run_config
from rgalign.training.hllm import encode_catalog
from rgalign.training.ranker_files import LoadedRanker, load_ranker
from rgalign.training.semantic import read_provenance


def index_of(loaded: LoadedRanker, precision: Precision = "float32") -> IntentIndex:
    """The index of a ranker's own catalogue; rows stand in the catalogue's order."""
    catalog = loaded.catalog
    with torch.no_grad():
        vectors = loaded.ranker.intents()
    return build_index(catalog.ids, catalog.titles, vectors, index_provenance(loaded), precision)


def index_provenance(loaded: LoadedRanker) -> dict[str, str]:
    return {
        "intent_tower": _hash(loaded.ranker.intent_tower),
        "text_encoder": str(loaded.provenance.get("semantic") or "none"),
        "catalogue": loaded.catalog.hash,
        "ranker": loaded.hash,
    }


def add_by_text(index: IntentIndex, run_dir: Path, catalog: IntentCatalog) -> IntentIndex:
    """The index with further intents that the run never saw, ranked by what their texts say.

    Their texts are embedded by the encoder that the run's text vectors came from; the intent tower then judges them as
    it judges intents without a click in training: by the row of the unknown id.

    Raises:
        ConfigError: a ranker that knows intents by id only.
        ProvenanceError: an index of another ranker, or text vectors that are not those of the run.
        DataError: an id that is in the index already.
    """
    loaded = load_ranker(run_dir)
    directory = run_config(run_dir).semantic
    if directory is None or getattr(loaded.ranker.intent_tower.fields, "semantic", None) is None:
        required = "a ranker trained with text vectors (--set semantic=...)"
        raise ConfigError(where=str(run_dir), required=required, received="one that knows intents by id only")
    provenance = index_provenance(loaded)
    found = str(read_provenance(directory)["sha256"])
    if found != provenance["text_encoder"]:
        required = f"text vectors {provenance['text_encoder'][:12]}"
        raise ProvenanceError(where=str(directory), required=required, received=found[:12])
    for intent_id in catalog.ids:  # before the texts are embedded, which takes a while
        if intent_id in index.rows:
            raise DataError(where="index add", required="ids that are not in the index", received=repr(intent_id))
    semantic = encode_catalog(directory, catalog)
    vectors = cold_vectors(loaded.ranker.intent_tower, semantic)
    return add_intents(index, catalog.ids, catalog.titles, vectors, {**provenance, "catalogue": catalog.hash})


@torch.no_grad()
def cold_vectors(tower: nn.Module, semantic: Tensor) -> Tensor:
    """Text vectors [M, S] of intents that the tower never saw -> unit vectors [M, d], as of intents without a click."""
    cold = copy.deepcopy(tower).eval()
    fields = cold.fields
    assert isinstance(fields, nn.Module)
    fields.semantic = semantic.float()
    fields.seen = torch.zeros(len(semantic), dtype=torch.bool)
    vectors: Tensor = cold()
    return vectors


def _hash(module: nn.Module) -> str:
    """sha256 of every parameter and buffer, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
