"""Dataset -> latent queries of an aligned reasoner, from cached lower states after tuning ``upper``.

The store is the one that ``rgalign embed --set model=RUN/model`` would fill, and either may go on with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch

from rgalign.config import dump_config, load_config
from rgalign.data.dataset import SPLITS, Dataset
from rgalign.errors import ModelNotFoundError
from rgalign.reasoner.hf import Pooling
from rgalign.reasoner.pretrained import load_causal_lm, model_fingerprint
from rgalign.training.alignment.alignment_config import AlignmentConfig
from rgalign.training.alignment.lower_states import LowerStates
from rgalign.training.alignment.policy import MODEL
from rgalign.training.alignment.upper_reasoner import UpperReasoner
from rgalign.training.embed import (
    EMBED_CONFIG,
    EmbedConfig,
    EmbedReport,
    embed_dataset,
    fill_store,
    prompt_encoder,
    store_provenance,
)
from rgalign.training.latents import LatentStore
from rgalign.training.run_directory import RunDirectory


def reembed(
    run_dir: Path, out: Path, *, dataset: Path | None = None, splits: Iterable[str] = SPLITS, progress: bool = True
) -> EmbedReport:
    """Embeds a dataset with the reasoner of a finished alignment run, prompts as the run had them.

    Args:
        dataset: None is the run's.

    Raises:
        ModelNotFoundError: no finished run there.
        ProvenanceError: ``out`` holds vectors of another origin.
    """
    if not RunDirectory(run_dir).is_done:
        required = "a finished alignment run"
        raise ModelNotFoundError(where=str(run_dir), required=required, received="none (no marker)")
    config = load_config(AlignmentConfig, run_dir / "config.yaml")
    given = load_config(EmbedConfig, config.latents / EMBED_CONFIG)
    embedding = given.model_copy(update={"model": str(run_dir / MODEL)})
    opened = Dataset.open(dataset or config.dataset)
    # Vectors from rounded states would not be those of the model alone.
    rounded = config.state_dtype != "float32" or config.precision != "float32"
    plain = embedding.pooling != "external" and embedding.dtype == "float32" and embedding.backend == "hf"
    if config.tuning != "upper" or rounded or not plain:
        return embed_dataset(opened, out, embedding, splits=splits, progress=progress)
    reasoner = cached_reasoner(config, embedding)
    encoder = prompt_encoder(embedding, reasoner.tokenizer, opened)
    store = LatentStore.create(out, store_provenance(reasoner, encoder, embedding))
    dump_config(embedding, out / EMBED_CONFIG)
    return fill_store(
        store,
        opened,
        encoder,
        reasoner,
        embedding.store_dtype,
        splits=splits,
        titles=embedding.titles,
        progress=progress,
    )


def cached_reasoner(config: AlignmentConfig, embedding: EmbedConfig) -> UpperReasoner:
    """The aligned model over the lower states that its training used."""
    model, tokenizer = load_causal_lm(embedding.model, torch.float32)
    num_lower = len(model.get_decoder().layers) - config.upper_layers
    states = LowerStates(
        model, num_lower, cache=config.state_cache, dtype=config.state_dtype, max_tokens=embedding.pack_tokens
    )
    return UpperReasoner(
        model,
        tokenizer,
        states,
        pooling=cast(Pooling, embedding.pooling),
        fingerprint=model_fingerprint(embedding.model),
        max_batch_tokens=embedding.pack_tokens,
    )
