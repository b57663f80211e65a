"""The exported directory has the form that its readers parse, and gives q̂ of the ranker: by the library where it is."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import processors
from transformers import AutoModel, AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from rgalign.errors import ConfigError, DataError
from rgalign.files import sha256_file
from rgalign.models.layers import unit
from rgalign.models.query_tower import QueryTower
from rgalign.reasoner.hf import HFReasoner
from rgalign.reasoner.sentence_transformers import export_sentence_transformers

HIDDEN, DIM = 32, 12
FAMILIES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
TEXTS = ["<s>Data: page one\nQuestion:", "<s>Data: a much longer page\nQuestion:", "<s>x"]


@pytest.fixture(params=["llama", "qwen3"])
def model(request: pytest.FixtureRequest, tmp_path: Path, byte_tokenizer: Callable[..., Any]) -> Path:
    """Its tokenizer adds a token before every text, as Llama's does."""
    tokenizer = byte_tokenizer("<s>", "</s>", eos="</s>")
    begin = tokenizer.convert_tokens_to_ids("<s>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", begin)]
    )
    tokenizer.save_pretrained(tmp_path / "model")
    assert AutoTokenizer.from_pretrained(tmp_path / "model")("x").input_ids[0] == begin
    torch.manual_seed(0)
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config, family = FAMILIES[request.param]
    extra = {"head_dim": 16, "num_key_value_heads": 1, "max_position_embeddings": 256, "initializer_range": 0.3}
    family(config(vocab_size=len(tokenizer), **sizes, **extra)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def tower() -> QueryTower:
    torch.manual_seed(1)
    made = QueryTower(HIDDEN, DIM, "standardize", dropout=0.2).eval()
    made.set_statistics(3.0 + 2.0 * torch.randn(50, HIDDEN))
    return made


@pytest.fixture
def exported(model: Path, tower: QueryTower, tmp_path: Path) -> Path:
    with torch.no_grad():
        export_sentence_transformers(
            str(model), tmp_path / "out", *tower.folded(), max_tokens=128, info={"ranker": "r"}
        )
    return tmp_path / "out"


def expected_queries(model: Path, tower: QueryTower) -> torch.Tensor:
    reasoner = HFReasoner.from_pretrained(str(model))
    ids = [np.array(reasoner.tokenizer(text, add_special_tokens=False).input_ids, np.int32) for text in TEXTS]
    with torch.no_grad():
        queries = unit(tower(reasoner.embed(ids)))
    assert torch.nn.functional.cosine_similarity(queries[0], queries[1], dim=0) < 0.999
    return queries


def by_the_files(directory: Path) -> torch.Tensor:
    """What the documented meaning of the directory's files gives; nothing of ours is called."""
    modules = json.loads((directory / "modules.json").read_text())
    assert [module["type"].rsplit(".", 1)[1] for module in modules] == ["Transformer", "Pooling", "Dense", "Normalize"]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(directory, dtype=torch.float32)(**batch).last_hidden_state
    pooling = json.loads((directory / modules[1]["path"] / "config.json").read_text())
    assert [key for key, value in pooling.items() if key.startswith("pooling_mode") and value] == [
        "pooling_mode_lasttoken"
    ]
    steps = torch.arange(states.shape[1])
    last = torch.where(batch["attention_mask"].bool(), steps, -1).amax(dim=1)
    dense = json.loads((directory / modules[2]["path"] / "config.json").read_text())
    linear = torch.nn.Linear(dense["in_features"], dense["out_features"], bias=dense["bias"])
    weights = load_file(directory / modules[2]["path"] / "model.safetensors")
    linear.load_state_dict({name.removeprefix("linear."): value for name, value in weights.items()})
    assert dense["activation_function"].endswith("Identity")
    return torch.nn.functional.normalize(linear(states[torch.arange(len(TEXTS)), last]).detach(), dim=-1)


def test_the_files_say_the_query_tower(model: Path, tower: QueryTower, exported: Path) -> None:
    cosines = torch.nn.functional.cosine_similarity(by_the_files(exported), expected_queries(model, tower))
    assert cosines.min() >= 0.99999


@pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None, reason="needs `pip install 'rgalign[export]'`"
)
def test_sentence_transformers_gives_the_same_vectors(model: Path, tower: QueryTower, exported: Path) -> None:
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(str(exported), device="cpu", model_kwargs={"dtype": torch.float32})
    found = loaded.encode(TEXTS, convert_to_tensor=True)
    assert torch.nn.functional.cosine_similarity(found, expected_queries(model, tower)).min() >= 0.99999


def test_the_exported_tokenizer_adds_nothing_and_pads(model: Path, exported: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert (
        tokenizer("<s>x").input_ids == AutoTokenizer.from_pretrained(model)("<s>x", add_special_tokens=False).input_ids
    )
    assert tokenizer.pad_token == "</s>"
    assert tokenizer.model_max_length == 128


def test_every_file_is_hashed_and_an_export_is_replaced(model: Path, tower: QueryTower, exported: Path) -> None:
    info = json.loads((exported / "rgalign.json").read_text())
    present = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()} - {"rgalign.json"}
    assert set(info["files"]) == present
    assert "2_Dense/model.safetensors" in present
    assert all(sha256_file(exported / name) == value for name, value in info["files"].items())
    (exported / "stray").write_text("x")
    with torch.no_grad():
        export_sentence_transformers(str(model), exported, *tower.folded(), max_tokens=64, info={})
    assert not (exported / "stray").exists()
    assert [path.name for path in exported.parent.iterdir() if path.name.startswith(".")] == []


def test_what_is_refused(model: Path, tower: QueryTower, tmp_path: Path) -> None:
    weight, bias = (tensor.detach() for tensor in tower.folded())
    with pytest.raises(DataError, match=r"required W \[d, 32\] and b \[d\]; received W \[12, 31\]"):
        export_sentence_transformers(str(model), tmp_path / "out", weight[:, 1:], bias, max_tokens=64, info={})
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match="a new directory or one exported before"):
        export_sentence_transformers(str(model), tmp_path / "mine", weight, bias, max_tokens=64, info={})
    assert not (tmp_path / "out").exists()
