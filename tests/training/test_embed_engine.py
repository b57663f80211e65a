"""`rgalign embed --set backend=engine`: built once into the store, nearly the same vectors, another provenance."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rgalign.chat_format import PromptTemplate
from rgalign.config import load_config
from rgalign.data.dataset import Dataset, DatasetWriter
from rgalign.errors import ConfigError, DataError, ProvenanceError
from rgalign.intents import IntentCatalog
from rgalign.reasoner.engine.artifact import MANIFEST
from rgalign.schema import CategoricalFeature, FeatureSchema
from rgalign.training.embed import EMBED_CONFIG, EmbedConfig, embed_dataset, load_reasoner, with_backend
from rgalign.training.engine_calibration import calibration_of
from rgalign.training.latents import LatentStore


@pytest.fixture
def embedding(tmp_path: Path, byte_tokenizer: Callable[..., Any]) -> EmbedConfig:
    tokenizer = byte_tokenizer("<|im_start|>", "<|im_end|>", eos="<|im_end|>", pad="<|im_start|>")
    tokenizer.save_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings = LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, eos_token_id=257, **sizes)
    LlamaForCausalLM(settings).save_pretrained(tmp_path / "model")
    template = PromptTemplate(name="short", system="Guess.", before="Data: ", after="\nQuestion:")
    return EmbedConfig(model=str(tmp_path / "model"), template=template, max_batch_tokens=64, backend="hf")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    pages = {f"p{number}": f"page {number}" for number in range(20)}
    feature = CategoricalFeature(name="page", dimension="context", vocabulary="pages", verbalize="Page: {value}")
    rows = {
        "session_id": [f"s{row:03d}" for row in range(24)],
        "user_id": ["u"] * 24,
        "ts": pa.array([datetime(2026, 1, 1) + timedelta(minutes=row) for row in range(24)], pa.timestamp("us")),
        "region": ["r"] * 24,
        "page": [f"p{row % 20}" for row in range(24)],
        "candidates": pa.array([[]] * 24, pa.list_(pa.string())),
        "clicked": [["a"]] * 24,
    }
    schema = FeatureSchema(name="t", features=(feature,), vocabularies={"pages": pages})
    with DatasetWriter(tmp_path / "data", schema, IntentCatalog(("a",), ("where is it",), ("",))) as writer:
        writer.write("train", pa.table(rows))
    return Dataset.open(tmp_path / "data")


@pytest.mark.parametrize(("dtype", "least"), [("fp32", 0.99999), ("int8a12", 0.999), ("int8", 0.99)])
def test_a_store_made_by_the_engine(
    dtype: str, least: float, embedding: EmbedConfig, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RGALIGN_CACHE", str(tmp_path / "cache"))
    embed_dataset(dataset, tmp_path / "hf", embedding, splits=("train",), progress=False)
    config = embedding.model_copy(update={"backend": "engine", "engine_dtype": dtype})
    embed_dataset(dataset, tmp_path / "engine", config, splits=("train",), progress=False)
    stores = [LatentStore.open(tmp_path / name) for name in ("hf", "engine")]
    left, right = (torch.from_numpy(np.array(store.take(store.rows(dataset, "train")))) for store in stores)
    assert left.std() > 0.1
    assert torch.nn.functional.cosine_similarity(left, right).min() > least
    assert stores[0].provenance["dtype"] == "float32"
    assert stores[1].provenance["dtype"] == dtype

    manifest = tmp_path / "engine" / f"engine-{dtype}" / MANIFEST
    made = manifest.stat().st_mtime_ns
    embed_dataset(dataset, tmp_path / "engine", config, splits=("train",), progress=False)
    assert manifest.stat().st_mtime_ns == made
    assert load_reasoner(config, tmp_path / "engine").provenance.items() <= stores[1].provenance.items()
    if dtype == "fp32":
        assert load_reasoner(config).provenance == load_reasoner(config, tmp_path / "engine").provenance
    else:  # calibrated on this dataset's prompts: the states are not moved as a whole
        moved = (right - left).mean(dim=0).abs().max()
        assert moved < 1e-5 * left.abs().max()
        assert moved < 1e-2 * (right - left).abs().mean()
    with pytest.raises(ProvenanceError):
        embed_dataset(dataset, tmp_path / "engine", embedding, splits=("train",), progress=False)
    manifest.write_text("{}")  # a damaged engine is built again, and is the same
    embed_dataset(dataset, tmp_path / "engine", config, splits=("train",), progress=False)


def test_poolings_that_the_engine_does_not_have(embedding: EmbedConfig, tmp_path: Path) -> None:
    config = embedding.model_copy(update={"backend": "engine", "pooling": "mean"})
    with pytest.raises(ConfigError, match="ltp or eos"):
        load_reasoner(config, tmp_path)


def test_calibration_prompts(embedding: EmbedConfig, dataset: Dataset) -> None:
    made = calibration_of(dataset.path, embedding.model, template=embedding.template, count=5, alpha=0.5)
    assert len(made.prompts) == 5
    assert all(tuple(ids[: len(made.prompt["prefix_ids"])]) == tuple(made.prompt["prefix_ids"]) for ids in made.prompts)
    with pytest.raises(ConfigError, match=r"alpha in \[0, 1\]"):
        calibration_of(dataset.path, embedding.model, template=embedding.template, count=5, alpha=2.0)
    with pytest.raises(DataError):
        calibration_of(dataset.path / "nowhere", embedding.model, template=embedding.template, count=5, alpha=0.5)


def test_auto_is_the_engine_where_it_computes_this(embedding: EmbedConfig, dataset: Dataset, tmp_path: Path) -> None:
    auto = embedding.model_copy(update={"backend": "auto"})
    assert EmbedConfig().backend == "auto"
    assert with_backend(auto).backend == "engine"
    for changed in ({"pooling": "mean"}, {"dtype": "bfloat16"}, {"device": "cuda"}, {"max_tokens": 10**6}):
        assert with_backend(auto.model_copy(update=changed)).backend == "hf", changed
    assert with_backend(embedding).backend == "hf"
    embed_dataset(dataset, tmp_path / "latents", auto, progress=False)
    assert load_config(EmbedConfig, tmp_path / "latents" / EMBED_CONFIG).backend == "engine"
    path = tmp_path / "model" / "config.json"
    path.write_text(path.read_text().replace('"intermediate_size": 64', '"intermediate_size": 72'))
    assert with_backend(auto).backend == "hf"
