"""A tiny Qwen3 with a ChatML tokenizer on disk, forty sessions, their latent queries' embed.yaml, and a selection."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from rgalign.chat_format import PromptTemplate
from rgalign.config import parse_config
from rgalign.data.dataset import Dataset, DatasetWriter
from rgalign.files import write_json
from rgalign.intents import IntentCatalog
from rgalign.schema import CategoricalFeature, FeatureSchema
from rgalign.training.alignment import frozen_head
from rgalign.training.alignment.alignment_config import AlignmentConfig
from rgalign.training.embed import EmbedConfig, embed_dataset

HIDDEN = 32
SESSIONS = 40
QUERIES = ("where is my order", "when is my refund paid", "how do i log in", "the parcel is missing")
SHORT = PromptTemplate(name="short", system="help", before="data: ", after=" ask:")  # a byte is a token here
PAGES = ("orders", "refunds", "account", "search", "wallet", "help")
SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}


def tiny_tokenizer(*, chat: bool = True) -> PreTrainedTokenizerFast:
    """Bytes as tokens, and ChatML's control tokens."""
    vocabulary = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ("<|im_start|>", "<|im_end|>", "<|endoftext|>") if chat else ("<|endoftext|>",)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=names[-2] if chat else names[-1])


def build_model(family: str = "qwen3", *, tied: bool = True, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config, model = {"qwen3": (Qwen3Config, Qwen3ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}[family]
    settings = config(vocab_size=259, tie_word_embeddings=tied, initializer_range=0.2, eos_token_id=257, **SIZES)
    return model(settings).eval()


def write_model(path: Path, family: str = "qwen3", *, chat: bool = True, tied: bool = True) -> Path:
    build_model(family, tied=tied).save_pretrained(path)
    tiny_tokenizer(chat=chat).save_pretrained(path)
    return path


def write_dataset(path: Path) -> Dataset:
    """The clicked intent follows from the page."""
    catalog = IntentCatalog(tuple("abcdef"), tuple(f"intent {name}" for name in "abcdef"), ("",) * 6)
    feature = CategoricalFeature(name="page", dimension="context", vocabulary="page", verbalize="Page: {value}")
    place = CategoricalFeature(name="place", dimension="profile", vocabulary="place", verbalize="Place: {value}")
    places = {f"p{number}": f"street {number}" for number in range(9)}
    schema = FeatureSchema(
        name="t", features=(feature, place), vocabularies={"page": {name: name for name in PAGES}, "place": places}
    )
    rows = {
        "session_id": [f"s{row:03d}" for row in range(SESSIONS)],
        "user_id": ["u"] * SESSIONS,
        "ts": pa.array([datetime(2026, 1, 1) + timedelta(minutes=row) for row in range(SESSIONS)], pa.timestamp("us")),
        "region": ["r"] * SESSIONS,
        "page": [PAGES[row % 6] for row in range(SESSIONS)],
        "place": [f"p{row % 9}" for row in range(SESSIONS)],
        "candidates": pa.array([[]] * SESSIONS, pa.list_(pa.string())),
        "clicked": [["abcdef"[row % 6]] for row in range(SESSIONS)],
    }
    with DatasetWriter(path, schema, catalog) as writer:
        for split in ("train", "valid"):
            writer.write(split, pa.table(rows))
    return Dataset.open(path)


def selection_rows() -> list[dict[str, Any]]:
    rows = []
    for row in range(SESSIONS):
        chosen = QUERIES[row % len(PAGES) % len(QUERIES)]  # follows from the page
        others = [query for query in QUERIES if query != chosen][: 1 + row % 3]
        rows.append(
            {
                "session_id": f"s{row:03d}",
                "chosen": chosen,
                "chosen_reward": 1.0,
                "chosen_teacher": "a",
                "rejected": others,
                "rejected_reward": [0.5 - 0.1 * place for place in range(len(others))],
                "rejected_teacher": ["b"] * len(others),
            }
        )
    return rows


def write_selection(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Targets are random directions, one a distinct query."""
    path.mkdir(parents=True)
    texts, strings, floats = pa.string(), pa.list_(pa.string()), pa.list_(pa.float64())
    kinds = [("session_id", texts), ("chosen", texts), ("chosen_reward", pa.float64()), ("chosen_teacher", texts)]
    kinds += [("rejected", strings), ("rejected_reward", floats), ("rejected_teacher", strings)]
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(kinds)), path / "preferences.parquet")
    directions = np.random.default_rng(0).normal(size=(len(QUERIES) + 1, HIDDEN)).astype(np.float32)
    known = {query: number for number, query in enumerate(QUERIES)}
    np.save(path / "chosen_latents.npy", directions[[known.get(row["chosen"], len(QUERIES)) for row in rows]])
    write_json(path / "selection.json", {"split": "train"})
    return path


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Any]:
    """(family, tied, seed) -> four layers in evaluation mode."""
    return build_model


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Path]:
    return write_model


@pytest.fixture(scope="session")
def make_selection() -> Callable[[Path, list[dict[str, Any]]], Path]:
    return write_selection


@pytest.fixture
def preference_rows() -> list[dict[str, Any]]:
    return selection_rows()


@pytest.fixture(scope="session")
def alignment_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model/, data/, latents/ and selection/."""
    place = tmp_path_factory.mktemp("alignment")
    write_model(place / "model")
    write_dataset(place / "data")
    embedding = EmbedConfig(model=str(place / "model"), template=SHORT, max_batch_tokens=64, titles=True)
    embed_dataset(Dataset.open(place / "data"), place / "latents", embedding, progress=False)
    write_selection(place / "selection", selection_rows())
    return place


@pytest.fixture(scope="session")
def make_config(alignment_place: Path) -> Callable[..., AlignmentConfig]:
    """A configuration that trains in seconds; keyword arguments replace keys."""

    def make(**changes: Any) -> AlignmentConfig:
        values = {
            "preset": "small_cpu",
            "selection": alignment_place / "selection",
            "dataset": alignment_place / "data",
            "latents": alignment_place / "latents",
            "state_cache": alignment_place / "states",
            "upper_layers": 2,
            "effective_batch": 8,
            "micro_batch": 4,
            "epochs": 1,
            "learning_rate": 1e-3,
            "held_out": 0.2,
            "checkpoint_steps": 2,
        }
        return parse_config(AlignmentConfig, {**values, **changes}, where="test")

    return make


@pytest.fixture
def plain_head_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many positions each call of the plain LM head has scored."""
    scored: list[int] = []
    plain = frozen_head.token_log_probs

    def counted(hidden: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        scored.append(len(hidden))
        return plain(hidden, *arguments)

    monkeypatch.setattr(frozen_head, "token_log_probs", counted)
    return scored
