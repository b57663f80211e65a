"""A dataset of a few hundred sessions with features of all four kinds, its latent queries, and a small ranker."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rgalign.data.dataset import Dataset, DatasetWriter
from rgalign.intents import IntentCatalog
from rgalign.schema import (
    CategoricalFeature,
    CategoricalMember,
    FeatureSchema,
    GroupFeature,
    NumericalFeature,
    NumericalMember,
    SequenceFeature,
)
from rgalign.training.latents import LatentStore

NUM_INTENTS = 7
PAGES = ("orders", "returns", "wallet", "home")
LATENT_DIM = 6
LATENT_PROVENANCE = {"model": "tiny", "template": "paper", "pooling": "ltp", "dtype": "float32", "dim": LATENT_DIM}


def small_catalog() -> IntentCatalog:
    ids = tuple(f"i{number}" for number in range(NUM_INTENTS))
    return IntentCatalog(ids, tuple(f"intent {name}" for name in ids), ("",) * NUM_INTENTS)


def small_schema() -> FeatureSchema:
    return FeatureSchema(
        name="small",
        features=(
            CategoricalFeature(name="page", dimension="context", vocabulary="pages"),
            NumericalFeature(name="balance", dimension="profile", transform="log1p"),
            SequenceFeature(name="viewed", dimension="behaviour", vocabulary="pages", max_length=5),
            GroupFeature(
                name="contacts",
                dimension="behaviour",
                members=(
                    CategoricalMember(name="contact_intent", vocabulary="intents"),
                    NumericalMember(name="contact_age", unit="hours"),
                ),
                age="contact_age",
                max_length=4,
            ),
        ),
        vocabularies={"pages": {page: page.title() for page in PAGES}},
    )


def small_table(count: int, seed: int, start: datetime) -> pa.Table:
    """Sessions whose clicks follow from the page and the last contact; a third has a slate of candidates."""
    rng = np.random.default_rng(seed)
    ids = small_catalog().ids
    rows: list[dict[str, Any]] = []
    for number in range(count):
        page, contacts = int(rng.integers(len(PAGES))), rng.integers(NUM_INTENTS, size=rng.integers(5)).tolist()
        likely = contacts[0] if contacts and rng.random() < 0.5 else page
        clicked = sorted({likely, int(rng.integers(NUM_INTENTS))} if rng.random() < 0.2 else {likely})
        slate = sorted({*clicked, *rng.integers(NUM_INTENTS, size=4).tolist()}) if number % 3 == 0 else []
        rows.append(
            {
                "session_id": f"s{seed}-{number}",
                "user_id": f"u{number % 50}",
                "ts": start + timedelta(minutes=number),
                "region": "north",
                "page": PAGES[page],
                "balance": float(rng.exponential(50)) if rng.random() < 0.9 else None,
                "viewed": [PAGES[code] for code in rng.integers(len(PAGES), size=rng.integers(6))],
                "contact_intent": [ids[row] for row in contacts],
                "contact_age": np.sort(rng.exponential(40, size=len(contacts))).tolist(),
                "candidates": [ids[row] for row in slate],
                "clicked": [ids[row] for row in clicked],
            }
        )
    types = {
        "session_id": pa.string(),
        "user_id": pa.string(),
        "ts": pa.timestamp("us"),
        "region": pa.string(),
        "page": pa.string(),
        "balance": pa.float64(),
        "viewed": pa.list_(pa.string()),
        "contact_intent": pa.list_(pa.string()),
        "contact_age": pa.list_(pa.float64()),
        "candidates": pa.list_(pa.string()),
        "clicked": pa.list_(pa.string()),
    }
    return pa.Table.from_pylist(rows, schema=pa.schema(list(types.items())))


def write_small_dataset(path: Path, *, num_train: int = 300, seed: int = 0) -> Dataset:
    """``train`` has three shards of unequal size."""
    sizes = {"train": num_train, "valid": 70, "test": 50}
    with DatasetWriter(path, small_schema(), small_catalog(), rows_per_shard=num_train * 3 // 7) as writer:
        for week, (split, count) in enumerate(sizes.items()):
            start = datetime(2026, 1, 1) + timedelta(weeks=week)
            writer.write(split, small_table(count, 10 * seed + week, start))
    return Dataset.open(path)


def write_small_latents(path: Path, dataset: Dataset, provenance: dict[str, Any] = LATENT_PROVENANCE) -> LatentStore:
    store = LatentStore.create(path, provenance)
    for number, split in enumerate(("train", "valid", "test")):
        count = dataset.num_rows(split)
        first = len(store)
        vectors = np.random.default_rng(number).normal(size=(count, LATENT_DIM)).astype(np.float32)
        store.append([f"{split}{row:011d}".encode()[:16].ljust(16) for row in range(count)], vectors)
        store.write_map(dataset, split, np.arange(first, first + count))
    return store


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Dataset]:
    return write_small_dataset


@pytest.fixture(scope="session")
def make_latents() -> Callable[..., LatentStore]:
    return write_small_latents


@pytest.fixture(scope="session")
def latent_provenance() -> dict[str, Any]:
    return dict(LATENT_PROVENANCE)


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_small_dataset(tmp_path_factory.mktemp("small") / "dataset")


@pytest.fixture(scope="session")
def small_latents(tmp_path_factory: pytest.TempPathFactory, small_dataset: Dataset) -> LatentStore:
    return write_small_latents(tmp_path_factory.mktemp("latents") / "store", small_dataset)


@pytest.fixture(scope="session")
def stage1_values(small_dataset: Dataset, small_latents: LatentStore) -> Callable[..., dict[str, Any]]:
    """Values of a Stage1Config that trains in a second; keyword arguments replace top-level keys."""

    def values(**changes: Any) -> dict[str, Any]:
        model = {
            "model": "qe_rec",
            "dim": 8,
            "user": {"embedding_dim": 4, "history_dim": 4, "attention_dim": 8, "num_layers": 1, "hidden": [16]},
            "intent": {"id_dim": 4, "semantic_dim": 4, "num_crosses": 1},
            "confidence": {"hidden": 8},
        }
        plain = {
            "dataset": str(small_dataset.path),
            "latents": str(small_latents.path),
            "model": model,
            "epochs": 3,
            "batch_size": 32,
            "checkpoint_steps": 4,
            "optimiser": {"learning_rate": 0.01},
        }
        return {**plain, **changes}

    return values


@pytest.fixture(scope="session")
def byte_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """(control tokens, eos, pad) -> a tokenizer whose tokens are bytes, and its control tokens."""

    def make(*control: str, eos: str, pad: str | None = None) -> PreTrainedTokenizerFast:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE({char: place for place, char in enumerate(alphabet)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(text, special=True) for text in control])
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, pad_token=pad)

    return make
