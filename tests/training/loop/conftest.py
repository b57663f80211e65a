"""A loop that runs in seconds: sessions whose prompt says the title they came for, a tiny random Qwen3, small rankers.

As in the reward's fixtures a candidate that is a title stands where the ranker has seen titles, so the gate has
something to find although the model is random.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from rgalign.chat_format import PromptTemplate
from rgalign.data.dataset import Dataset, DatasetWriter
from rgalign.intents import IntentCatalog
from rgalign.schema import CategoricalFeature, FeatureSchema

TITLES = ("Broken Street Light", "Missed Trash Pickup", "Noise at Night", "Parking Permit", "Pothole", "Tree Pruning")
TEMPLATE = PromptTemplate(name="short", system="Guess.", before="Data: ", after="\nQuestion:")
RANKER = {
    "model": "qe_rec",
    "omega": 0.1,
    "dim": 8,
    "user": {"embedding_dim": 4, "history_dim": 4, "attention_dim": 8, "num_layers": 1, "hidden": [8]},
    "intent": {"id_dim": 4, "semantic_dim": 4, "num_crosses": 1},
}


def write_sessions(path: Path) -> Dataset:
    rng = np.random.default_rng(0)
    ids = tuple(f"i{number}" for number in range(len(TITLES)))
    hint = CategoricalFeature(name="hint", dimension="context", vocabulary="intents", verbalize="{value}")
    schema = FeatureSchema(name="echo", features=(hint,))
    with DatasetWriter(path, schema, IntentCatalog(ids, TITLES, ("",) * len(ids))) as writer:
        for split, count, day in (("train", 240, 1), ("valid", 60, 20), ("test", 40, 25)):
            said = rng.integers(len(ids), size=count)
            meant = np.where(rng.random(count) < 0.9, said, rng.integers(len(ids), size=count))
            rows = {
                "session_id": [f"{split}-{row}" for row in range(count)],
                "user_id": [f"u{row % 30}" for row in range(count)],
                "ts": [datetime(2026, 1, day) + timedelta(minutes=row) for row in range(count)],
                "region": ["r"] * count,
                "hint": [ids[row] for row in said],
                "candidates": pa.array([[]] * count, pa.list_(pa.string())),
                "clicked": [[ids[row]] for row in meant],
            }
            writer.write(split, pa.table(rows))
    return Dataset.open(path)


def write_reasoner(path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=512,
        initializer_range=0.3,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(path)
    return path


def write_replay(path: Path, dataset: Dataset) -> Path:
    """The stand-in for the reasoner says the title in every other session, and something vague in the rest."""
    ids, hints = (dataset.table("train", [name]).column(0).to_pylist() for name in ("session_id", "hint"))
    names = dataset.catalog.names
    lines = [
        {"session_id": each, "query": names[hint] if place % 2 else "I have a question about it"}
        for place, (each, hint) in enumerate(zip(ids, hints, strict=True))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="session")
def loop_values(
    tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Callable[..., PreTrainedTokenizerFast]
) -> Callable[..., dict[str, Any]]:
    """Values of a LoopConfig; keyword arguments replace keys of sections (dicts) or whole keys."""
    place = tmp_path_factory.mktemp("loop")
    dataset = write_sessions(place / "data")
    replay = write_replay(place / "said.jsonl", dataset)
    model = write_reasoner(
        place / "model", byte_tokenizer("<|im_start|>", "<|im_end|>", eos="<|im_end|>", pad="<|im_start|>")
    )

    def values(**changes: Any) -> dict[str, Any]:
        plain: dict[str, Any] = {
            "dataset": str(dataset.path),
            "embed": {"model": str(model), "template": TEMPLATE.model_dump(mode="json")},
            "stage1": {
                "model": RANKER,
                "epochs": 6,
                "batch_size": 32,
                "optimiser": {"learning_rate": 0.02},
                "checkpoint_steps": 4,
                "device": "cpu",
            },
            "generate": {
                "max_sessions": 36,
                "teachers": [
                    {"kind": "transition"},
                    {"kind": "neighbour"},
                    {"kind": "replay", "name": "reasoner", "path": str(replay), "knows_titles": True},
                ],
                "validator": {"min_words": 1, "language": "any"},
            },
            "reward": {"folds": 2, "gate_sessions": 60, "placement": "slots"},
            "select": {"strategy": "V1"},
            "alignment": {
                "preset": "small_cpu",
                "upper_layers": 1,
                "state_cache": str(place / "states"),
                "effective_batch": 8,
                "micro_batch": 8,
                "epochs": 1,
                "learning_rate": 1e-3,
                "held_out": 0.1,
                "checkpoint_steps": 2,
            },
            "stage3": {"epochs": 2},
            "evaluation": {"resamples": 200, "num_examples": 1},
        }
        for key, value in changes.items():
            plain[key] = {**plain.get(key, {}), **value} if isinstance(value, dict) else value
        return plain

    return values
