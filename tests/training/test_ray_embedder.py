"""Two Ray actors on this machine fill a store with the very bytes of a single process."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rgalign.chat_format import PromptTemplate
from rgalign.data.dataset import Dataset, DatasetWriter
from rgalign.errors import ConfigError
from rgalign.intents import IntentCatalog
from rgalign.schema import CategoricalFeature, FeatureSchema
from rgalign.training import embed
from rgalign.training.embed import EmbedConfig, embed_dataset
from rgalign.training.latents import LatentStore
from rgalign.training.ray_embedder import RayActors


@pytest.fixture
def embedding(tmp_path: Path, byte_tokenizer: Callable[..., Any]) -> EmbedConfig:
    tokenizer = byte_tokenizer("<|im_start|>", "<|im_end|>", eos="<|im_end|>", pad="<|im_start|>")
    tokenizer.save_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings = LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, eos_token_id=257, **sizes)
    LlamaForCausalLM(settings).save_pretrained(tmp_path / "model")
    template = PromptTemplate(name="short", system="Guess.", before="Data: ", after="\nQuestion:")
    return EmbedConfig(model=str(tmp_path / "model"), template=template, max_batch_tokens=64)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Sessions of 100 different prompts."""
    pages = {f"p{number}": f"page {number}" for number in range(100)}
    feature = CategoricalFeature(name="page", dimension="context", vocabulary="pages", verbalize="Page: {value}")
    rows = {
        "session_id": [f"s{row:03d}" for row in range(120)],
        "user_id": ["u"] * 120,
        "ts": pa.array([datetime(2026, 1, 1) + timedelta(minutes=row) for row in range(120)], pa.timestamp("us")),
        "region": ["r"] * 120,
        "page": [f"p{row % 100}" for row in range(120)],
        "candidates": pa.array([[]] * 120, pa.list_(pa.string())),
        "clicked": [["a"]] * 120,
    }
    schema = FeatureSchema(name="t", features=(feature,), vocabularies={"pages": pages})
    with DatasetWriter(tmp_path / "data", schema, IntentCatalog(("a",), ("where is it",), ("",))) as writer:
        writer.write("train", pa.table(rows))
    return Dataset.open(tmp_path / "data")


@pytest.mark.slow
def test_two_actors_write_the_bytes_of_one_process(
    embedding: EmbedConfig, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(embed, "CHUNK_PROMPTS", 32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        embed_dataset(dataset, tmp_path / "one", embedding, splits=("train",), progress=False)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        two = embed_dataset(
            dataset, tmp_path / "two", embedding, splits=("train",), progress=False, actors=RayActors(2)
        )
    finally:
        torch.set_num_threads(threads)
        ray.shutdown()
    assert two.distinct_prompts == 100
    files = {path.relative_to(tmp_path / "one"): path.read_bytes() for path in (tmp_path / "one").rglob("*.npy")}
    assert len(files) > 6
    assert {path: (tmp_path / "two" / path).read_bytes() for path in files} == files
    assert len(LatentStore.open(tmp_path / "two")) == two.distinct_prompts
    again = embed_dataset(dataset, tmp_path / "two", embedding, splits=("train",), progress=False, actors=RayActors(2))
    assert again.distinct_prompts == 0


def test_no_actor_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one actor"):
        RayActors(0)
