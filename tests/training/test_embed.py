"""Latent queries of a dataset: equal prompts once, interrupted runs resumed, vectors of another origin refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from rgalign.data.dataset import Dataset, DatasetWriter
from rgalign.errors import ProvenanceError
from rgalign.intents import IntentCatalog
from rgalign.prompt import PromptEncoder
from rgalign.reasoner.prefix_tree import TokenIds
from rgalign.schema import CategoricalFeature, FeatureSchema
from rgalign.training import embed
from rgalign.training.latents import LatentStore
from rgalign.training.title_latents import TEXTS, title_prompts, title_texts

ENTRIES = ["orders", "refunds", "account", "search", "wallet"]
DIM = 4


class CountingEmbedder:
    """A vector that tells the prompt's tokens apart; fails after ``limit`` prompts."""

    def __init__(self, limit: int = 10**9) -> None:
        self.limit = limit
        self.seen: list[tuple[int, ...]] = []

    def embed(
        self, token_ids: Sequence[TokenIds], *, prefix_ids: Sequence[int], on_prompts: Callable[[int], None]
    ) -> torch.Tensor:
        if len(self.seen) + len(token_ids) > self.limit:
            raise KeyboardInterrupt
        self.seen += [tuple(ids.tolist()) for ids in token_ids]
        return torch.tensor([[float(ids.sum()), float(ids[0]), len(ids), 1.0] for ids in token_ids])


def make_dataset(path: Path, entries: Sequence[str], rows_per_shard: int = 8) -> Dataset:
    catalog = IntentCatalog(("a", "b"), ("where is it", "pay me back"), ("", ""))
    feature = CategoricalFeature(name="entry", dimension="context", vocabulary="entry", verbalize="Entry: {value}")
    schema = FeatureSchema(name="t", features=(feature,), vocabularies={"entry": {name: name for name in ENTRIES}})
    count = len(entries)
    rows = {
        "session_id": [f"s{row:03d}" for row in range(count)],
        "user_id": ["u"] * count,
        "ts": pa.array([datetime(2026, 1, 1) + timedelta(minutes=row) for row in range(count)], pa.timestamp("us")),
        "region": ["r"] * count,
        "entry": list(entries),
        "candidates": pa.array([[]] * count, pa.list_(pa.string())),
        "clicked": [["a"]] * count,
    }
    with DatasetWriter(path, schema, catalog, rows_per_shard) as writer:
        writer.write("train", pa.table(rows))
    return Dataset.open(path)


def make_encoder(dataset: Dataset) -> PromptEncoder:
    words = ["[UNK]", "Entry", ":", *ENTRIES, "?"]
    tokenizer = Tokenizer(WordLevel({word: row for row, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return PromptEncoder(tokenizer, dataset.schema, dataset.catalog, chat_format="plain")


def fill(store: LatentStore, dataset: Dataset, embedder: Any) -> embed.EmbedReport:
    return embed.fill_store(store, dataset, make_encoder(dataset), embedder, splits=["train"], progress=False)


def test_equal_prompts_are_computed_once_over_shards_and_datasets(tmp_path: Path) -> None:
    store = LatentStore.create(tmp_path / "store", {"dim": DIM})
    first = make_dataset(tmp_path / "first", ENTRIES[:3] * 7)
    embedder = CountingEmbedder()
    report = fill(store, first, embedder)
    assert report.sessions == 21
    assert len(embedder.seen) == len(set(embedder.seen)) == report.distinct_prompts == 3

    second = make_dataset(tmp_path / "second", ENTRIES)
    assert fill(LatentStore.open(tmp_path / "store"), second, embedder).distinct_prompts == 2
    assert len(embedder.seen) == 5


def test_each_session_finds_the_vector_of_its_prompt(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", ENTRIES * 5)
    fill(LatentStore.create(tmp_path / "store", {"dim": DIM}), dataset, CountingEmbedder())
    store = LatentStore.open(tmp_path / "store")
    encoder = make_encoder(dataset)
    prompts = [np.array([*encoder.encode({"entry": name}).slot_ids, *encoder.suffix_ids]) for name in ENTRIES * 5]
    expected = np.array([[ids.sum(), ids[0], len(ids), 1.0] for ids in prompts], dtype=np.float32)
    rows = store.rows(dataset, "train")
    assert np.array_equal(store.take(rows), expected)
    assert len(np.unique(expected[:, 0])) == len(ENTRIES)
    second_shard = dataset.shards("train")[1].name
    assert np.array_equal(store.shard_rows(dataset, "train", second_shard), rows[8:16])


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "CHUNK_PROMPTS", 2)
    dataset = make_dataset(tmp_path / "data", ENTRIES)
    store = LatentStore.create(tmp_path / "store", {"dim": DIM})
    first = CountingEmbedder(limit=2)
    with pytest.raises(KeyboardInterrupt):
        fill(store, dataset, first)
    with pytest.raises(ProvenanceError, match="rgalign embed"):
        store.rows(dataset, "train")
    second = CountingEmbedder()
    fill(LatentStore.open(tmp_path / "store"), dataset, second)
    assert len(first.seen) == 2
    assert len(second.seen) == 3
    assert not set(first.seen) & set(second.seen)


def test_vectors_of_another_model_or_template_are_refused(tmp_path: Path) -> None:
    LatentStore.create(tmp_path, {"dim": DIM, "model": "one", "template": "paper"})
    with pytest.raises(ProvenanceError, match="required model 'two'; received model 'one'"):
        LatentStore.create(tmp_path, {"dim": DIM, "model": "two", "template": "paper"})
    with pytest.raises(ProvenanceError, match="template"):
        LatentStore.create(tmp_path, {"dim": DIM, "model": "one", "template": "prefix_cached"})


def test_a_dataset_that_changed_is_not_served_old_rows(tmp_path: Path) -> None:
    store = LatentStore.create(tmp_path / "store", {"dim": DIM})
    fill(store, make_dataset(tmp_path / "one", ENTRIES), CountingEmbedder())
    with pytest.raises(ProvenanceError, match="as it is now"):
        store.rows(make_dataset(tmp_path / "two", ENTRIES[::-1]), "train")


def test_no_store_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ProvenanceError, match="rgalign embed"):
        LatentStore.open(tmp_path / "nothing")


def test_the_intents_words_are_embedded_once_for_all_datasets_of_a_catalogue(tmp_path: Path) -> None:
    store, embedder = LatentStore.create(tmp_path / "store", {"dim": DIM}), CountingEmbedder()
    first, second = (make_dataset(tmp_path / name, ENTRIES) for name in ("first", "second"))
    with pytest.raises(ProvenanceError, match="titles=true"):
        store.titles(first.catalog)
    for dataset in (first, second):
        encoder = make_encoder(dataset)
        embed.fill_store(store, dataset, encoder, embedder, splits=["train"], titles=True, progress=False)
    rows = store.titles(second.catalog)
    assert rows.shape == (2, TEXTS)
    texts = title_texts(first.catalog)
    assert texts[0] == "where is it"
    assert all("pay me back" in text for text in texts[TEXTS:])
    prompts = title_prompts(first.catalog, make_encoder(first))
    found = store.take(rows.ravel())
    assert found[:, 2].tolist() == [len(ids) for ids in prompts]
    assert len(embedder.seen) == len(set(embedder.seen)) == len(ENTRIES) + len({ids.tobytes() for ids in prompts})
