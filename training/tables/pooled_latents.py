"""Latent queries of an SFT-aligned reasoner with another pooling than the one it was aligned on (table 3)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rgalign.config import Config, dump_config, load_config
from rgalign.data.dataset import SPLITS, Dataset
from rgalign.training.alignment.alignment_config import AlignmentConfig
from rgalign.training.alignment.policy import MODEL
from rgalign.training.alignment.reembed import cached_reasoner
from rgalign.training.embed import (
    EMBED_CONFIG,
    EmbedConfig,
    EmbedReport,
    embed_dataset,
    fill_store,
    prompt_encoder,
    store_provenance,
    with_backend,
)
from rgalign.training.latents import LatentStore
from rgalign.training.loop.outside_files import dataset_hashes
from rgalign.training.loop.reasoner_steps import NOT_EMBEDDED, encoder_hash, latents_outcome
from rgalign.training.loop.step import OnStep, Step


class PooledConfig(Config):
    """Args: run: a finished alignment run; embedding: of its prompts, the pooling wanted; its model is the run's."""

    run: Path
    dataset: Path
    embedding: EmbedConfig


def pooled_step(name: str, aligned: str, config: PooledConfig, *, progress: bool) -> Step:
    """Args: aligned: the step whose output is ``config.run``."""

    def run(out: Path, on_step: OnStep | None) -> Mapping[str, Any]:
        report = embed_pooled(config, out, progress=progress)
        return {"sessions": report.sessions, "distinct_prompts_computed_last": report.distinct_prompts}

    return Step(
        name=name,
        config=config,
        settings=config.embedding.model_dump(mode="json", exclude=NOT_EMBEDDED),
        after=(aligned,),
        run=run,
        outcome=latents_outcome,
        files=lambda: {**dataset_hashes(config.dataset, SPLITS), **encoder_hash(config.embedding)},
    )


def embed_pooled(config: PooledConfig, out: Path, *, progress: bool = True) -> EmbedReport:
    """Embeds all sessions; ``mean`` and ``eos`` from cached lower states where the run tuned the upper layers alone."""
    alignment = load_config(AlignmentConfig, config.run / "config.yaml")
    embedding = with_backend(config.embedding.model_copy(update={"model": str(config.run / MODEL)}))
    dataset = Dataset.open(config.dataset)
    cached = alignment.tuning == "upper" and alignment.state_dtype == embedding.dtype == "float32"
    if embedding.pooling == "external" or embedding.backend != "hf" or not cached:
        return embed_dataset(dataset, out, embedding, progress=progress)
    reasoner = cached_reasoner(alignment, embedding)
    encoder = prompt_encoder(embedding, reasoner.tokenizer, dataset)
    store = LatentStore.create(out, store_provenance(reasoner, encoder, embedding))
    dump_config(embedding, out / EMBED_CONFIG)
    dtype, titles = embedding.store_dtype, embedding.titles
    return fill_store(store, dataset, encoder, reasoner, dtype, titles=titles, progress=progress)
