"""Sessions whose prompt says the intent they came for, a tiny reasoner, and a ranker that listens to it.

The one feature is verbalised as the title of an intent, and nine of ten sessions click it: so a candidate that is a
title stands where the ranker has seen titles, and the gate has something to find, although the model is random.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rgalign.chat_format import PromptTemplate
from rgalign.data.dataset import Dataset, DatasetWriter
from rgalign.intents import IntentCatalog
from rgalign.schema import CategoricalFeature, FeatureSchema
from rgalign.training.embed import EmbedConfig, embed_dataset
from rgalign.training.stage1 import Stage1Config, train_stage1
from rgalign.training.teachers.generate import generate
from rgalign.training.teachers.generate_config import GenerateConfig

TITLES = ("Broken Street Light", "Missed Trash Pickup", "Noise at Night", "Parking Permit", "Pothole", "Tree Pruning")
TEMPLATE = PromptTemplate(name="short", system="Guess.", before="Data: ", after="\nQuestion:")


@dataclass(frozen=True)
class Echo:
    """Everything the reward reads."""

    dataset: Dataset
    model: Path
    latents: Path
    ranker: Path
    candidates: Path


def write_echo(
    path: Path, *, num_train: int = 240, num_valid: int = 60, change: dict[int, str] | None = None
) -> Dataset:
    """Args: change: training row -> another click."""
    rng = np.random.default_rng(0)
    ids = tuple(f"i{number}" for number in range(len(TITLES)))
    hint = CategoricalFeature(name="hint", dimension="context", vocabulary="intents", verbalize="{value}")
    schema = FeatureSchema(name="echo", features=(hint,))
    with DatasetWriter(path, schema, IntentCatalog(ids, TITLES, ("",) * len(ids)), rows_per_shard=100) as writer:
        for split, count, day in (("train", num_train, 1), ("valid", num_valid, 20)):
            said = rng.integers(len(ids), size=count)
            meant = np.where(rng.random(count) < 0.9, said, rng.integers(len(ids), size=count))
            clicked = [[ids[row]] for row in meant]
            for row, click in (change or {}).items() if split == "train" else ():
                clicked[row] = [click]
            rows = {
                "session_id": [f"{split}-{row}" for row in range(count)],
                "user_id": [f"u{row % 30}" for row in range(count)],
                "ts": [datetime(2026, 1, day) + timedelta(minutes=row) for row in range(count)],
                "region": ["r"] * count,
                "hint": [ids[row] for row in said],
                "candidates": pa.array([[]] * count, pa.list_(pa.string())),
                "clicked": clicked,
            }
            writer.write(split, pa.table(rows))
    return Dataset.open(path)


def write_tiny_model(path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def stage1_config(dataset: Dataset, latents: Path | None, **changes: Any) -> Stage1Config:
    values = {
        "dataset": dataset.path,
        "latents": latents,
        "model": {
            "model": "qe_rec",
            "omega": 0.1,
            "dim": 8,
            "user": {"embedding_dim": 4, "history_dim": 4, "attention_dim": 8, "num_layers": 1, "hidden": [8]},
            "intent": {"id_dim": 4, "semantic_dim": 4, "num_crosses": 1},
        },
        "epochs": 8,
        "batch_size": 32,
        "optimiser": {"learning_rate": 0.02},
        "metric": "ndcg@3",
    }
    return Stage1Config.model_validate({**values, **changes})


@pytest.fixture(scope="session")
def make_echo() -> Callable[..., Dataset]:
    return write_echo


@pytest.fixture(scope="session")
def make_stage1() -> Callable[..., Stage1Config]:
    return stage1_config


@pytest.fixture(scope="session")
def echo(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> Echo:
    path = tmp_path_factory.mktemp("echo")
    dataset = write_echo(path / "data")
    model = write_tiny_model(
        path / "model", byte_tokenizer("<|im_start|>", "<|im_end|>", eos="<|im_end|>", pad="<|im_start|>")
    )
    embedding = EmbedConfig(model=str(model), template=TEMPLATE)
    embed_dataset(dataset, path / "latents", embedding, splits=["train", "valid"], progress=False)
    train_stage1(stage1_config(dataset, path / "latents"), path / "ranker")
    replay = {"kind": "replay", "name": "reasoner", "path": path / "said.jsonl", "knows_titles": True}
    teachers = [{"kind": "transition"}, {"kind": "neighbour"}, replay]
    # The stand-in for the reasoner says the title in every other session, and something vague in the rest.
    ids, hints = (dataset.table("train", [name]).column(0).to_pylist() for name in ("session_id", "hint"))
    names = dataset.catalog.names
    lines = [
        {"session_id": each, "query": names[hint] if place % 2 else "I have a question about it"}
        for place, (each, hint) in enumerate(zip(ids, hints, strict=True))
    ]
    (path / "said.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {
        "dataset": dataset.path,
        "max_sessions": 90,
        "teachers": teachers,
        "validator": {"min_words": 1, "language": "any"},
    }
    generate(GenerateConfig.model_validate(settings), path / "candidates", progress=False)
    return Echo(dataset, model, path / "latents", path / "ranker", path / "candidates")
