"""A run on a few hundred sessions with a random two-layer reasoner, and its bundle; two conftests load it by path."""

from __future__ import annotations

import importlib.util
import sys
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rgalign.chat_format import PromptTemplate
from rgalign.data.dataset import Dataset, DatasetWriter
from rgalign.schema import FeatureSchema
from rgalign.training.bundle_build import build_bundle
from rgalign.training.embed import EmbedConfig, embed_dataset
from rgalign.training.stage1 import Stage1Config, train_stage1

SIZES = {"train": 120, "valid": 40, "test": 20}


def load_by_path(name: str, path: Path) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


small: Any = load_by_path("small_sessions", Path(__file__).parent.parent / "training" / "conftest.py")


def spoken_schema() -> FeatureSchema:
    values = small.small_schema().model_dump(mode="json")
    page, balance, viewed, contacts = values["features"]
    page["verbalize"], balance["verbalize"] = "Page: {value}", "Balance: {value}"
    viewed["verbalize"] = "Viewed: {items}"
    contacts["verbalize"], contacts["item"] = "Asked: {items}", "'{contact_intent}' {contact_age} ago"
    return FeatureSchema.model_validate(values)


def write_model(path: Path, seed: int) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: place for place, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>")])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_start|>")
    fast.save_pretrained(path)
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings = LlamaConfig(vocab_size=len(fast), initializer_range=0.3, eos_token_id=257, **sizes)
    LlamaForCausalLM(settings).save_pretrained(path)


def write_dataset(path: Path) -> Dataset:
    with DatasetWriter(path, spoken_schema(), small.small_catalog()) as writer:
        for week, (split, count) in enumerate(SIZES.items()):
            writer.write(split, small.small_table(count, week, datetime(2026, 1, 1) + timedelta(weeks=week)))
    return Dataset.open(path)


def train(path: Path, *, seed: int = 0, with_latents: bool = True) -> Path:
    """A finished run below ``path``; its latent queries are the fp32 engine's."""
    if not (path / "data").exists():
        write_model(path / "model", 0)
        dataset = write_dataset(path / "data")
        template = PromptTemplate(name="short", system="Guess.", before="Data: ", after="\nQuestion:")
        embedding = EmbedConfig(
            model=str(path / "model"), template=template, max_tokens=300, backend="engine", engine_dtype="fp32"
        )
        embed_dataset(dataset, path / "latents", embedding, progress=False)
    model = {
        "model": "qe_rec",
        "dim": 8,
        "user": {"embedding_dim": 4, "history_dim": 4, "attention_dim": 8, "num_layers": 1, "hidden": [16]},
        "intent": {"id_dim": 4, "semantic_dim": 4, "num_crosses": 1},
    }
    values: dict[str, Any] = {
        "dataset": str(path / "data"),
        "latents": str(path / "latents") if with_latents else None,
        "model": model,
        "epochs": 1,
        "batch_size": 32,
        "seed": seed,
        "optimiser": {"learning_rate": 0.01},
    }
    run = path / f"run-{seed}-{with_latents}"
    train_stage1(Stage1Config.model_validate(values), run)
    return run


def make_bundle(run: Path, out: Path, **options: Any) -> Path:
    build_bundle(run, out, **options)
    return out
