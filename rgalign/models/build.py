"""Rankers from their configuration, and their weights on disk: tensors only, safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rgalign.errors import ProvenanceError
from rgalign.files import atomic_path
from rgalign.intents import IntentCatalog
from rgalign.models.baseline import BaselineConfig, build_baseline
from rgalign.models.qe_rec import QERecConfig, build_qe_rec
from rgalign.models.ranker import Ranker
from rgalign.schema import FeatureSchema

RankerConfig = Annotated[QERecConfig | BaselineConfig, Field(discriminator="model")]


def build_ranker(
    config: QERecConfig | BaselineConfig,
    schema: FeatureSchema,
    catalog: IntentCatalog,
    latent_dim: int | None = None,
    semantic: Tensor | None = None,
) -> Ranker:
    """A ranker with fresh weights.

    Args:
        latent_dim: D of the latent queries; None builds QE-Rec without a query tower. The baseline has none.
        semantic: [N, S] frozen text vectors of the catalogue rows; None for ids only.
    """
    bound = schema.bind(catalog)
    if isinstance(config, BaselineConfig):
        return build_baseline(config, bound, catalog, semantic)
    return build_qe_rec(config, bound, catalog, latent_dim, semantic)


def save_weights(ranker: Ranker, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes every parameter and buffer, the semantic matrix included, as one safetensors file."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in ranker.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata)


def load_weights(
    path: Path, config: QERecConfig | BaselineConfig, schema: FeatureSchema, catalog: IntentCatalog
) -> Ranker:
    """The ranker that ``save_weights`` wrote; latent and semantic widths are read from its tensors.

    Raises:
        ProvenanceError: the tensors are not those of this configuration, schema and catalogue.
    """
    required = "the weights of this configuration, schema and catalogue"
    if not path.is_file():
        raise ProvenanceError(where=str(path), required=required, received="no such file")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ProvenanceError(where=str(path), required=required, received=str(error)) from error
    query = tensors.get("query_tower.linear.weight")
    semantic = tensors.get("intent_tower.fields.semantic")
    ranker = build_ranker(config, schema, catalog, None if query is None else query.shape[1], semantic)
    expected = {name: tuple(tensor.shape) for name, tensor in ranker.state_dict().items()}
    received = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != received:
        differing = sorted(
            name for name in expected.keys() | received.keys() if expected.get(name) != received.get(name)
        )
        raise ProvenanceError(where=str(path), required=required, received=f"other tensors: {', '.join(differing[:4])}")
    ranker.load_state_dict(tensors)
    return ranker.eval()
