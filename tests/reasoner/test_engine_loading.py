"""An engine takes the memory of its weights and little more."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rgalign.bench.engine_loading import measure_loading
from rgalign.reasoner.engine.artifact import TENSORS
from rgalign.reasoner.engine.build import build_engine

MOST_GROWTH = 1.15  # of resident memory over weights and keys and values of the prefix
PREFIX_TOKENS = 180
# As large as SmolLM2 in 8 bits. A first call costs some 12 MB that are no engine's: pages of torch and numpy that were
# mapped and never touched, and scratch memory. Of a model of 46 MB that alone would be a quarter.
SIZES = {"vocab_size": 98_304, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12}
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    config = LlamaConfig(**SIZES, **HEADS, tie_word_embeddings=True)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    return path


@pytest.mark.parametrize("dtype", ["fp32", "int8a12"])
def test_memory_grows_by_weights_and_prefix(dtype: str, checkpoint: Path, tmp_path: Path) -> None:
    build_engine(str(checkpoint), tmp_path / "e", dtype)
    found = measure_loading(tmp_path / "e", PREFIX_TOKENS)
    weights = (tmp_path / "e" / TENSORS).stat().st_size
    assert found.needed_bytes == weights + 2 * 4 * PREFIX_TOKENS * 12 * 4 * 64
    # All of it was read: otherwise nothing would have been measured.
    assert 0.9 < found.ratio < MOST_GROWTH
