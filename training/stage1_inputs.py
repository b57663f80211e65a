"""What a stage-1 run is made from: the files it reads, the hashes that identify them, and the encoded sessions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from rgalign.data.dataset import Dataset
from rgalign.data.encode import NumericStats, SessionEncoder
from rgalign.errors import DataError
from rgalign.files import sha256_file
from rgalign.training.alignment.preferences import PREFERENCES
from rgalign.training.latents import LatentStore
from rgalign.training.ranker_files import LoadedRanker
from rgalign.training.semantic import load_semantic, read_provenance
from rgalign.training.sessions import (
    Ints,
    Latents,
    Sessions,
    click_counts,
    evenly_spaced,
    open_sessions,
    tables,
)
from rgalign.training.stage1_config import Stage1Config
from rgalign.training.used_sessions import used_rows
from rgalign.training.warm_start import load_warm_start

FORMAT = 1
STATISTICS_LATENTS = 65_536  # latent queries that the query tower's input statistics are taken from


@dataclass(frozen=True)
class EncodedSessions:
    """The splits ready for the ranker.

    Args:
        clicks: [N] clicks of each intent among the training sessions.
        latent_sample: [n, D] latent queries of training sessions, None without a store.
        titles: [N, T, D] latent queries of the intents' own words, None unless the loss asks for them.
        unknown: what the encoder found outside the vocabularies, of the splits held in memory.
    """

    train: Sessions
    valid: Sessions
    encoder: SessionEncoder
    clicks: Tensor
    latent_sample: Tensor | None
    titles: Tensor | None
    unknown: dict[str, int]


@dataclass(frozen=True)
class Stage1Inputs:
    """Opened inputs. ``identity`` is what two starts must share to be one run."""

    config: Stage1Config
    dataset: Dataset
    store: LatentStore | None
    semantic: Tensor | None
    identity: dict[str, Any]
    warm_start: LoadedRanker | None = None

    @classmethod
    def open(cls, config: Stage1Config) -> Stage1Inputs:
        dataset = Dataset.open(config.dataset)
        for split in ("train", "valid"):
            if dataset.num_rows(split) == 0:
                raise DataError(where=str(dataset.path / split), required="at least one session", received="none")
        store = None if config.latents is None else LatentStore.open(config.latents)
        semantic = None
        semantic_hash = None
        if config.semantic is not None:
            semantic = load_semantic(config.semantic, dataset.catalog)
            semantic_hash = read_provenance(config.semantic)["sha256"]
        identity = {
            "format": FORMAT,
            "config": config.identity(),
            "schema": dataset.schema.hash,
            "catalogue": dataset.catalog.hash,
            "train": dataset.fingerprint("train"),
            "valid": dataset.fingerprint("valid"),
            "latents": None if store is None else store.provenance,
            "semantic": semantic_hash,
        }
        if config.without is not None:  # as with the warm start, the key is left out: older runs do not have it
            identity["without"] = sha256_file(config.without / PREFERENCES)
        if config.warm_start is None:
            return cls(config, dataset, store, semantic, identity)
        warm = load_warm_start(config.warm_start, config, store, identity)
        return cls(config, dataset, store, semantic, {**identity, "warm_start": warm.hash}, warm)

    def encode(self) -> EncodedSessions:
        """Statistics and click counts come from the training sessions that are used, and from no others."""
        config, dataset = self.config, self.dataset
        subset = used_rows(dataset, without=config.without, max_train=config.max_train)

        def train_tables(columns: list[str]) -> Iterator[pa.Table]:
            return tables(dataset, "train", columns, subset)

        stats = NumericStats.fit(train_tables(list(dataset.schema.columns)), dataset.schema)
        encoder = SessionEncoder(dataset.schema, dataset.catalog, stats)
        latents = {split: self._latents(split) for split in ("train", "valid")}
        memory = config.memory_rows
        train = open_sessions(dataset, "train", encoder, latents["train"], memory_rows=memory, subset=subset)
        valid = open_sessions(dataset, "valid", encoder, latents["valid"], memory_rows=memory)
        return EncodedSessions(
            train=train,
            valid=valid,
            encoder=encoder,
            clicks=click_counts(train_tables(["clicked"]), dataset.catalog),
            latent_sample=None if latents["train"] is None else self._sample(latents["train"], subset),
            titles=self._titles(),
            unknown=dict(encoder.counters),
        )

    def _titles(self) -> Tensor | None:
        model = self.config.model
        if self.store is None or not model.loss.title_weight:
            return None
        rows = self.store.titles(self.dataset.catalog)
        return torch.from_numpy(self.store.take(rows.ravel())).view(*rows.shape, -1)

    def _latents(self, split: str) -> Latents | None:
        return None if self.store is None else Latents(self.store, self.dataset, split)

    def _sample(self, latents: Latents, subset: Ints | None) -> Tensor:
        rows = latents.rows if subset is None else latents.rows[subset]
        spread = evenly_spaced(len(rows), STATISTICS_LATENTS)
        return torch.from_numpy(latents.store.take(rows if spread is None else rows[spread]))
