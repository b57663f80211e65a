"""Latent queries of candidates: equal prompts once, kept on disk, by the reasoner that the ranker was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rgalign.data.dataset import Dataset
from rgalign.errors import ConfigError
from rgalign.prompt import PromptEncoder
from rgalign.reasoner.external import ExternalReasoner
from rgalign.reasoner.prefix_tree import TokenIds
from rgalign.training.embed import EmbedConfig, Reasoner, embed_prompts, load_reasoner, prompt_encoder, store_provenance
from rgalign.training.latents import LatentStore
from rgalign.training.reward.candidate_prompts import computed_tokens

Ints = NDArray[np.int64]


@dataclass
class TokenCounts:
    """Of prompts that were not in the store, the constant prefix aside; ``computed`` after sharing beginnings."""

    asked: int = 0
    embedded: int = 0
    prompt_tokens: int = 0
    computed_tokens: int = 0

    def to_json(self) -> dict[str, int]:
        return dict(self.__dict__)


class CandidateEmbedder:
    """The reasoner behind a ranker's latent queries, with a store for candidates of its own.

    Attributes:
        encoder: of the sessions' prompts, as they were embedded.
        counts: of this object's life.
    """

    def __init__(self, reasoner: Reasoner, encoder: PromptEncoder, store: LatentStore, dtype: str) -> None:
        self.reasoner, self.encoder, self.store = reasoner, encoder, store
        self.counts = TokenCounts()
        self._dtype = dtype

    @classmethod
    def load(
        cls, embedding: EmbedConfig, dataset: Dataset, latents: Path, trained_on: dict[str, Any], path: Path
    ) -> CandidateEmbedder:
        """Loads the reasoner that ``embedding`` names.

        Args:
            latents: directory of the ranker's latent queries.
            trained_on: provenance of those that it was trained on.
            path: the candidates' store, opened or made.

        Raises:
            ProvenanceError: the reasoner of today is not the one that made the ranker's latent queries.
            ConfigError: latent queries that are no state of the reasoner (pooling ``external``).
        """
        reasoner = load_reasoner(embedding, latents)
        if isinstance(reasoner, ExternalReasoner):
            required = "latent queries that are the reasoner's own states (pooling ltp, mean or eos)"
            raise ConfigError(where="reward", required=required, received=f"pooling {embedding.pooling}")
        encoder = prompt_encoder(embedding, reasoner.tokenizer, dataset)
        provenance = store_provenance(reasoner, encoder, embedding)
        store = LatentStore.create(path, provenance)
        store.require(trained_on)
        return cls(reasoner, encoder, store, embedding.store_dtype)

    def rows(self, prompts: Sequence[TokenIds], *, label: str, progress: bool) -> Ints:
        """Row of the store of each prompt (below the constant prefix); what is missing is computed."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TimeRemainingColumn(), disable=not progress) as bar:
            task = bar.add_task(label, total=0)
            filled = embed_prompts(
                self.store,
                prompts,
                self.encoder.prefix_ids,
                self.reasoner,
                self._dtype,
                begin=lambda total: bar.update(task, total=total),
                advance=lambda count: bar.advance(task, count),
            )
        self.counts.asked += len(prompts)
        self.counts.embedded += len(filled.embedded)
        self.counts.prompt_tokens += sum(map(len, filled.embedded))
        self.counts.computed_tokens += computed_tokens(filled.embedded)
        return filled.rows
