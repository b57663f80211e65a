"""The latent query of a prompt does not depend on what is computed beside it, or on where padding stands."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rgalign.errors import DataError
from rgalign.reasoner.hf import HFReasoner, Pooling

SIZES = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "eos_token_id": 3,
}
TOLERANCE = 2e-5  # float32, three layers; states are of order 1
PREFIX = list(range(20, 40))


def tiny(family: str) -> Any:
    torch.manual_seed(0)
    config, model = {"qwen3": (Qwen3Config, Qwen3ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}[family]
    return model(config(**SIZES)).eval()


def prompts(count: int = 12, *, equal: int | None = None) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(1)
    made = [rng.integers(4, 512, equal or rng.integers(3, 40)).astype(np.int32) for _ in range(count)]
    for left, right in zip(made[::3], made[1::3], strict=False):  # pairs that begin alike
        right[:3] = left[:3]
    return made


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize("pooling", ["ltp", "mean", "eos"])
@pytest.mark.parametrize("equal", [None, 24], ids=["mixed lengths", "equal lengths"])
def test_a_batch_equals_one_by_one(family: str, pooling: Pooling, equal: int | None) -> None:
    reasoner = HFReasoner(tiny(family), None, pooling=pooling, max_batch_tokens=128)
    rows = prompts(equal=equal)
    together = reasoner.embed(rows, prefix_ids=PREFIX)
    alone = torch.cat([reasoner.embed([row], prefix_ids=PREFIX) for row in rows])
    without_cache = torch.cat([reasoner.embed([np.array([*PREFIX, *row], np.int32)]) for row in rows])
    assert together.std() > 0.1
    assert not torch.allclose(together[0], together[5], atol=0.05)
    torch.testing.assert_close(together, alone, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(together, without_cache, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("pooling", ["ltp", "mean"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("equal", [None, 24], ids=["mixed lengths", "equal lengths"])
def test_padding_on_either_side_changes_nothing(pooling: Pooling, side: str, equal: int | None) -> None:
    reasoner = HFReasoner(tiny("qwen3"), None, pooling=pooling)
    rows = prompts(equal=equal)
    width = max(map(len, rows)) + 5
    input_ids = torch.full((len(rows), width), 7)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for row, ids in enumerate(rows):
        place = slice(width - len(ids), width) if side == "left" else slice(0, len(ids))
        input_ids[row, place] = torch.from_numpy(ids.astype(np.int64))
        mask[row, place] = 1
    torch.testing.assert_close(reasoner.embed_padded(input_ids, mask), reasoner.embed(rows), atol=TOLERANCE, rtol=0)


def test_the_definition_is_the_post_norm_state_at_the_last_token() -> None:
    model = tiny("qwen3")
    row = prompts(1)[0]
    with torch.inference_mode():
        ids = torch.from_numpy(row.astype(np.int64))[None]
        expected = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1]
    torch.testing.assert_close(HFReasoner(model, None).embed([row])[0], expected, atol=TOLERANCE, rtol=0)


def test_an_equal_length_batch_stays_causal() -> None:
    """A later token must not reach an earlier one: the state after a prefix is that of the prefix alone."""
    reasoner = HFReasoner(tiny("llama"), None)
    rows = prompts(equal=24)
    cut = [row[:10] for row in rows]
    both = reasoner.embed([*rows, *cut])
    torch.testing.assert_close(both[len(rows) :], reasoner.embed(cut), atol=TOLERANCE, rtol=0)


def test_a_prefix_is_kept_and_replaced() -> None:
    reasoner = HFReasoner(tiny("qwen3"), None)
    rows = prompts(4)
    first = reasoner.embed(rows, prefix_ids=PREFIX)
    other = reasoner.embed(rows, prefix_ids=PREFIX[:5])
    again = reasoner.embed(rows, prefix_ids=PREFIX)
    torch.testing.assert_close(first, again, atol=TOLERANCE, rtol=0)
    assert (first - other).abs().max() > 0.01


@pytest.mark.parametrize("pooling", ["ltp", "mean", "eos"])
def test_windows_and_states_read_whole_prompts(pooling: Pooling) -> None:
    torch.manual_seed(0)
    windows = Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, sliding_window=8))
    states = Lfm2ForCausalLM(Lfm2Config(**SIZES, layer_types=["conv", "full_attention", "conv"]))
    for model in (windows.eval(), states.eval()):
        finished: list[int] = []
        found = HFReasoner(model, None, pooling=pooling).embed(
            prompts(4), prefix_ids=PREFIX, on_prompts=finished.append
        )
        assert sum(finished) == 4
        for vector, row in zip(found, prompts(4), strict=True):
            whole = [*PREFIX, *row.tolist(), *([3] if pooling == "eos" else [])]
            with torch.inference_mode():
                hidden = model.get_decoder()(input_ids=torch.tensor([whole])).last_hidden_state[0]
            torch.testing.assert_close(vector, hidden.mean(dim=0) if pooling == "mean" else hidden[-1])


def test_equal_prompts_get_equal_vectors() -> None:
    reasoner = HFReasoner(tiny("qwen3"), None)
    row = prompts(1)[0]
    same = reasoner.embed([row, row.copy(), row[:-1]])
    assert torch.equal(same[0], same[1])
    assert not torch.allclose(same[0], same[2], atol=0.01)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "at least one prompt"),
        ([np.array([], np.int32)], "prompt 0: required a non-empty row"),
        ([np.array([5], np.int32), np.array([512], np.int32)], "prompt 1: required token ids in 0..511"),
        ([np.array([-1], np.int32)], "token ids in 0..511"),
    ],
)
def test_unusable_prompts_are_refused(rows: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        HFReasoner(tiny("qwen3"), None).embed(rows)
