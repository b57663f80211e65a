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
from rgalign.reasoner.hf import HFReasoner
from rgalign.reasoner.prefix_tree import TokenIds
from rgalign.training.embed import CHUNK_PROMPTS, EmbedConfig, load_reasoner, prompt_encoder, store_provenance
from rgalign.training.latents import LatentStore, prompt_digest
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

    def __init__(self, reasoner: HFReasoner, encoder: PromptEncoder, store: LatentStore, dtype: str) -> None:
        self.reasoner, self.encoder, self.store = reasoner, encoder, store
        self.counts = TokenCounts()
        self._dtype = dtype
        self._prefix = np.asarray(encoder.prefix_ids, np.int32)

    @classmethod
    def load(
        cls, embedding: EmbedConfig, dataset: Dataset, trained_on: dict[str, Any], path: Path
    ) -> CandidateEmbedder:
        """Loads the reasoner that ``embedding`` names.

        Args:
            trained_on: provenance of the ranker's latent queries.
            path: the candidates' store, opened or made.

        Raises:
            ProvenanceError: the reasoner of today is not the one that made the ranker's latent queries.
            ConfigError: latent queries that are no state of the reasoner (pooling ``external``).
        """
        reasoner = load_reasoner(embedding)
        if not isinstance(reasoner, HFReasoner):
            required = "latent queries that are the reasoner's own states (pooling ltp, mean or eos)"
            raise ConfigError(where="reward", required=required, received=f"pooling {embedding.pooling}")
        encoder = prompt_encoder(embedding, reasoner.tokenizer, dataset)
        provenance = store_provenance(reasoner, encoder, embedding)
        store = LatentStore.create(path, provenance)
        store.require(trained_on)
        return cls(reasoner, encoder, store, embedding.store_dtype)

    def rows(self, prompts: Sequence[TokenIds], *, label: str, progress: bool) -> Ints:
        """Row of the store of each prompt (below the constant prefix); what is missing is computed."""
        digests = [prompt_digest(np.concatenate([self._prefix, ids])) for ids in prompts]
        missing = {key: ids for key, ids in zip(digests, prompts, strict=True) if key not in self.store.known}
        order = sorted(missing, key=lambda key: missing[key].astype(">u4").tobytes())
        self.counts.asked += len(prompts)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TimeRemainingColumn(), disable=not progress) as bar:
            task = bar.add_task(label, total=len(order))
            for start in range(0, len(order), CHUNK_PROMPTS):
                chunk = order[start : start + CHUNK_PROMPTS]
                self._embed(chunk, [missing[key] for key in chunk], lambda count: bar.advance(task, count))
        return np.array([self.store.known[key] for key in digests], np.int64)

    def _embed(self, digests: list[bytes], prompts: list[TokenIds], advance: Any) -> None:
        latents = self.reasoner.embed(prompts, prefix_ids=self.encoder.prefix_ids, on_prompts=advance)
        self.store.append(digests, latents.numpy().astype(self._dtype))
        self.counts.embedded += len(prompts)
        self.counts.prompt_tokens += sum(map(len, prompts))
        self.counts.computed_tokens += computed_tokens(prompts)
