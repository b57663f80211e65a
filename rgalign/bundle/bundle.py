"""A bundle that was read: checked first, and only then used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn

from rgalign.bundle.manifest import (
    CATALOGUE,
    ENGINE,
    INDEX,
    QUERY_TOWER,
    SCHEMA,
    TOKENIZER,
    USER_TOWER,
    Manifest,
    check_files,
    read_manifest,
)
from rgalign.data.encode import NumericStats, SessionEncoder
from rgalign.errors import DataError, ProvenanceError, RgalignError
from rgalign.index import IntentIndex, read_index
from rgalign.intents import IntentCatalog
from rgalign.models import build_ranker
from rgalign.prompt import PromptEncoder
from rgalign.reasoner.engine.artifact import read_manifest as read_engine_manifest
from rgalign.schema import FeatureSchema, GroupFeature, NumericalFeature
from rgalign.scoring import Projection

INTENT_TABLE = "intent_table"  # [N + 2, e] id table that histories read where ids are tied
TOWER = "tower."


@dataclass(frozen=True)
class Bundle:
    """Args:
    user_tower: SessionBatch and intent id table (or None) -> [B, d], in evaluation mode.
    projection: W [d, D] and b [d] of the query tower, standardisation folded in; None without a reasoner.
    prompts: None without a reasoner.
    """

    path: Path
    manifest: Manifest
    schema: FeatureSchema
    catalog: IntentCatalog
    encoder: SessionEncoder
    index: IntentIndex
    user_tower: nn.Module
    intent_table: Tensor | None
    projection: Projection | None
    prompts: PromptEncoder | None

    @property
    def hash(self) -> str:
        return self.manifest.hash

    @property
    def engine(self) -> Path:
        """The reasoner's directory."""
        return self.path / ENGINE


def read_bundle(path: Path | str) -> Bundle:
    """Checks and reads a bundle; nothing of it is used before every file has its hash.

    Raises:
        DataError, ProvenanceError: not a bundle, a damaged one, or parts that do not belong together.
    """
    path = Path(path)
    manifest = read_manifest(path)
    check_files(path, manifest)
    try:
        return _read(path, manifest)
    except (DataError, ProvenanceError):
        raise
    except (RgalignError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise DataError(where=str(path), required="the parts of a bundle", received=str(error)) from error


def _read(path: Path, manifest: Manifest) -> Bundle:
    catalog = IntentCatalog.read_parquet(path / CATALOGUE)
    schema = FeatureSchema.load(path / SCHEMA).bind(catalog)
    _require(path / SCHEMA, "schema", manifest.schema_hash, schema.hash)
    _require(path / CATALOGUE, "catalogue", manifest.catalogue, catalog.hash)
    index = read_index(path / INDEX, require=manifest.index)
    if index.dim != manifest.dim:
        raise DataError(where=str(path / INDEX), required=f"vectors of {manifest.dim}", received=str(index.dim))
    stats = NumericStats({name: (each.mean, each.std) for name, each in manifest.statistics.items()})
    _check_statistics(path, schema, stats)
    tower, table = _user_tower(path / USER_TOWER, manifest, schema, catalog)
    projection, prompts = None, None
    if manifest.reasoner is not None:
        projection = _projection(path / QUERY_TOWER, manifest)
        prompts = _prompts(path, manifest, schema, catalog)
        if manifest.full is None:
            raise DataError(where=str(path), required="a calibration of scores with latent queries", received="none")
    encoder = SessionEncoder(schema, catalog, stats)
    return Bundle(path, manifest, schema, catalog, encoder, index, tower, table, projection, prompts)


def _require(where: Path, what: str, wanted: str, found: str) -> None:
    if wanted != found:
        raise ProvenanceError(where=str(where), required=f"{what} {wanted[:12]}", received=found[:12])


def _check_statistics(path: Path, schema: FeatureSchema, stats: NumericStats) -> None:
    names = [feature.name for feature in schema.features if isinstance(feature, NumericalFeature)]
    for group in schema.features:
        if isinstance(group, GroupFeature):
            names += [each.name for each in group.members if each.kind == "numerical" and each.name != group.age]
    missing = sorted(set(names) ^ stats.moments.keys())
    if missing:
        raise DataError(where=str(path), required="statistics of each number", received=f"not of {missing[0]!r}")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """float32 or integer tensors of a safetensors file, all finite.

    Raises:
        DataError: not such a file, another dtype, NaN or infinity.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise DataError(where=str(path), required="a safetensors file", received=str(error)) from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise DataError(where=f"{path}, {name}", required="float32", received=str(tensor.dtype))
        if not tensor.isfinite().all():
            raise DataError(where=f"{path}, {name}", required="finite values", received="NaN or infinity")
    return tensors


def _user_tower(
    path: Path, manifest: Manifest, schema: FeatureSchema, catalog: IntentCatalog
) -> tuple[nn.Module, Tensor | None]:
    tensors = read_tensors(path)
    table = tensors.pop(INTENT_TABLE, None)
    with torch.random.fork_rng(devices=[]):  # initial weights, replaced at once
        ranker = build_ranker(manifest.model, schema, catalog)
    tower = ranker.user_tower
    received = {name.removeprefix(TOWER): tensor for name, tensor in tensors.items()}
    _same_shapes(path, tower.state_dict(), received)
    tower.load_state_dict(received)
    tied = bool(getattr(getattr(manifest.model, "user", None), "tie_intents", False))
    if (table is not None) != tied:
        required = "an intent table where histories read it, and only there"
        raise DataError(where=str(path), required=required, received="none" if table is None else "one")
    if table is not None:
        _same_shapes(path, {INTENT_TABLE: ranker.intent_tower.fields.table.weight}, {INTENT_TABLE: table})  # type: ignore[union-attr]
    return tower.eval().requires_grad_(False), table


def _same_shapes(path: Path, expected: dict[str, Any], received: dict[str, Tensor]) -> None:
    for name in sorted(expected.keys() | received.keys()):
        wanted = list(expected[name].shape) if name in expected else "none"
        found = list(received[name].shape) if name in received else "none"
        if wanted != found:
            raise DataError(where=f"{path}, {name}", required=f"shape {wanted}", received=str(found))


def _projection(path: Path, manifest: Manifest) -> Projection:
    assert manifest.reasoner is not None
    tensors = read_tensors(path)
    dim, hidden = manifest.dim, manifest.reasoner.hidden_size
    _same_shapes(path, {"weight": torch.empty(dim, hidden), "bias": torch.empty(dim)}, tensors)
    return Projection(tensors["weight"], tensors["bias"])


def _prompts(path: Path, manifest: Manifest, schema: FeatureSchema, catalog: IntentCatalog) -> PromptEncoder:
    part = manifest.reasoner
    assert part is not None
    engine = read_engine_manifest(path / ENGINE)
    _require(path / ENGINE, "engine", part.engine, engine.hash)
    if engine.config.hidden != part.hidden_size or engine.dtype != part.dtype:
        received = f"{engine.dtype}, {engine.config.hidden}"
        required = f"an engine of {part.dtype} with states of {part.hidden_size}"
        raise DataError(where=str(path / ENGINE), required=required, received=received)
    if part.pooling == "eos" and part.eos_token_id is None:
        raise DataError(where=str(path), required="eos_token_id with pooling eos", received="none")
    try:
        tokenizer = Tokenizer.from_file(str(path / TOKENIZER))
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise DataError(where=str(path / TOKENIZER), required="a tokenizer", received=str(error)) from error
    prompts = PromptEncoder(
        tokenizer,
        schema,
        catalog,
        template=part.template,
        chat_format=part.chat_format,
        max_tokens=part.max_tokens,
        include_pii=part.include_pii,
    )
    _require(path, "prompts", part.prompts, prompts.hash)
    _check_vocabulary(path, prompts, engine.config.vocabulary, engine.config.max_positions)
    return prompts


def _check_vocabulary(path: Path, prompts: PromptEncoder, vocabulary: int, max_positions: int) -> None:
    largest = max((*prompts.prefix_ids, *prompts.suffix_ids))
    if largest >= vocabulary:
        raise ProvenanceError(where=str(path), required=f"token ids below {vocabulary}", received=str(largest))
    if prompts.max_tokens > max_positions:
        received = f"max_tokens {prompts.max_tokens}"
        raise ProvenanceError(where=str(path), required=f"prompts of at most {max_positions}", received=received)
