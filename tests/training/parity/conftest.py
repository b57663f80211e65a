"""A tiny model, a dataset whose clicks follow the page, its latent queries and a ranker trained on them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from rgalign.chat_format import PromptTemplate
from rgalign.data.dataset import Dataset, DatasetWriter
from rgalign.intents import IntentCatalog
from rgalign.schema import CategoricalFeature, FeatureSchema
from rgalign.training.embed import EmbedConfig, embed_dataset
from rgalign.training.stage1 import Stage1Config, train_stage1

NUM_PAGES, NUM_INTENTS = 24, 6
SIZES = {"train": 120, "valid": 40, "test": 60}
TEMPLATE = PromptTemplate(name="short", system="Guess.", before="Data: ", after="\nQuestion:")


def sessions(split: str, count: int, start: datetime) -> pa.Table:
    pages = [(7 * row + len(split)) % NUM_PAGES for row in range(count)]
    return pa.table(
        {
            "session_id": [f"{split}{row:03d}" for row in range(count)],
            "user_id": [f"u{row % 20}" for row in range(count)],
            "ts": pa.array([start + timedelta(minutes=row) for row in range(count)], pa.timestamp("us")),
            "region": ["r"] * count,
            "page": [f"p{page}" for page in pages],
            "candidates": pa.array([["i0", f"i{page % 6}", "i5"] if page % 4 == 0 else [] for page in pages]),
            "clicked": [[f"i{page % NUM_INTENTS}"] for page in pages],
        }
    )


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Callable[..., Any]) -> SimpleNamespace:
    """model, dataset, latents, run"""
    root = tmp_path_factory.mktemp("parity")
    tokenizer = byte_tokenizer("<|im_start|>", "<|im_end|>", eos="<|im_end|>", pad="<|im_start|>")
    tokenizer.save_pretrained(root / "model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = Qwen3Config(
        vocab_size=len(tokenizer), head_dim=32, num_key_value_heads=1, initializer_range=0.3, eos_token_id=257, **sizes
    )
    Qwen3ForCausalLM(config).save_pretrained(root / "model")

    pages = {f"p{number}": f"page {chr(97 + number)}{number}" for number in range(NUM_PAGES)}
    feature = CategoricalFeature(name="page", dimension="context", vocabulary="pages", verbalize="Page: {value}")
    schema = FeatureSchema(name="t", features=(feature,), vocabularies={"pages": pages})
    intents = tuple(f"i{number}" for number in range(NUM_INTENTS))
    with DatasetWriter(root / "data", schema, IntentCatalog(intents, intents, ("",) * NUM_INTENTS)) as writer:
        for week, (split, count) in enumerate(SIZES.items()):
            writer.write(split, sessions(split, count, datetime(2026, 1, 1) + timedelta(weeks=week)))
    embedding = EmbedConfig(model=str(root / "model"), template=TEMPLATE, max_batch_tokens=64, backend="hf")
    embed_dataset(Dataset.open(root / "data"), root / "latents", embedding, progress=False)
    values = {
        "dataset": str(root / "data"),
        "latents": str(root / "latents"),
        "model": {
            "model": "qe_rec",
            "dim": 8,
            "omega": 0.3,
            "user": {"embedding_dim": 4, "history_dim": 4, "attention_dim": 8, "num_layers": 1, "hidden": [16]},
            "intent": {"id_dim": 4, "semantic_dim": 4, "num_crosses": 1},
        },
        "epochs": 8,
        "batch_size": 32,
        "optimiser": {"learning_rate": 0.02},
    }
    train_stage1(Stage1Config.model_validate(values), root / "run")
    return SimpleNamespace(model=str(root / "model"), dataset=root / "data", latents=root / "latents", run=root / "run")
