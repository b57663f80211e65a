"""A trained run as something that other engines serve: its reasoner and its query tower (rgalign engine export)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rgalign.config import load_config
from rgalign.data.dataset import Dataset
from rgalign.errors import ConfigError
from rgalign.reasoner.pretrained import load_tokenizer
from rgalign.reasoner.sentence_transformers import export_sentence_transformers
from rgalign.scoring import projection_of
from rgalign.training.embed import EMBED_CONFIG, EmbedConfig, prompt_encoder
from rgalign.training.experiment import run_config
from rgalign.training.latents import LatentStore
from rgalign.training.ranker_files import load_ranker

SAMPLE = 256  # sessions whose prompts are compared as text and as token ids


@dataclass(frozen=True)
class Exported:
    """Args:
    info: what ``rgalign.json`` holds.
    same_tokens: share of sampled prompts that an engine reads alike as text and as token ids; None without sessions.
    """

    info: dict[str, Any]
    same_tokens: float | None


def export_run(run_dir: Path, out: Path, *, latents: Path | None = None, dataset: Path | None = None) -> Exported:
    """Writes the Sentence-Transformers directory of a finished run.

    Args:
        latents, dataset: the run's, where they lie elsewhere now.

    Raises:
        ConfigError: a run without latent queries, of another pooling, or with a query tower that is not linear.
        ProvenanceError: latent queries other than the run's.
    """
    config = run_config(run_dir)
    store = latents or config.latents
    loaded = load_ranker(run_dir)
    if store is None or loaded.ranker.query_tower is None:
        raise ConfigError(where=str(run_dir), required="a run with latent queries", received="none (ω = 1)")
    loaded.require_latents(LatentStore.open(store))
    embedding = load_config(EmbedConfig, store / EMBED_CONFIG)
    if embedding.pooling != "ltp":
        required = "pooling ltp, the last prompt token"
        raise ConfigError(where=str(store), required=required, received=embedding.pooling)
    projection = projection_of(loaded.ranker.query_tower)
    if projection.bias is None:
        raise ConfigError(where=str(run_dir), required="a query tower with a bias", received="none")
    sessions = Dataset(dataset or config.dataset, loaded.schema, loaded.catalog)
    encoder = prompt_encoder(embedding, load_tokenizer(embedding.model), sessions)
    info = {
        "ranker": loaded.hash,
        "template": encoder.template.name,
        "chat_format": encoder.chat_format.name,
        "prefix_ids": list(encoder.prefix_ids),
        "suffix_ids": list(encoder.suffix_ids),
        "omega": float(loaded.ranker.omega.detach()),
    }
    with torch.no_grad():
        made = export_sentence_transformers(
            embedding.model, out, projection.weight, projection.bias, max_tokens=embedding.max_tokens, info=info
        )
    return Exported(made, _same_tokens(out, sessions, encoder))


def _same_tokens(exported: Path, dataset: Dataset, encoder: Any) -> float | None:
    tokenizer = load_tokenizer(str(exported))
    split = next((name for name in ("valid", "train") if dataset.shards(name)), None)
    if split is None:
        return None
    sessions = dataset.table(split).slice(0, SAMPLE).to_pylist()
    same = [
        tokenizer(encoder.text(session)).input_ids == encoder.full_ids(encoder.encode(session).slot_ids).tolist()
        for session in sessions
    ]
    return sum(same) / len(same) if same else None
