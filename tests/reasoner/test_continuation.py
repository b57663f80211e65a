"""Continued prompts: what transformers writes for each alone, whatever stands beside it or is shared before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rgalign.reasoner.continuation import continued, padding_of

PREFIX = [5, 6, 7]
PAD = 1


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    made = LlamaForCausalLM(LlamaConfig(vocab_size=50, num_key_value_heads=2, eos_token_id=3, **sizes)).eval()
    torch.nn.init.normal_(made.lm_head.weight)
    return made


def prompts() -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return [rng.integers(4, 50, length).astype(np.int32) for length in (4, 1, 11, 7)]


def alone(model: Any, ids: list[int]) -> list[int]:
    row = torch.tensor([ids])
    mask = torch.ones_like(row)
    written = model.generate(row, attention_mask=mask, do_sample=False, max_new_tokens=8, pad_token_id=PAD)
    found: list[int] = written[0, len(ids) :].tolist()
    return found


@pytest.mark.parametrize("prefix", [PREFIX, []], ids=["prefix", "no prefix"])
def test_each_prompt_is_continued_as_it_is_alone(model: Any, prefix: list[int]) -> None:
    together = continued(model, PAD, prompts(), prefix, max_new_tokens=8).tolist()
    expected = [alone(model, [*prefix, *ids.tolist()]) for ids in prompts()]
    width = max(map(len, expected))
    assert together == [row + [PAD] * (width - len(row)) for row in expected]
    assert len({tuple(row) for row in together}) == len(together)


def test_the_head_reads_states_in_one_piece_and_is_left_as_it_was(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    forward = model.lm_head.forward
    monkeypatch.setattr(model.lm_head, "forward", lambda states: seen.append(states.is_contiguous()) or forward(states))
    continued(model, PAD, prompts(), max_new_tokens=3)
    assert seen == [True, True, True]
    with pytest.raises(ValueError, match="max_new_tokens"):
        continued(model, PAD, prompts(), max_new_tokens=0)
    assert not model.lm_head._forward_pre_hooks


def test_padding_is_the_tokenizer_s_own_or_the_end_of_sequence() -> None:
    words = Tokenizer(WordLevel({"a": 0, "end": 1, "pad": 2}, unk_token="a"))
    assert padding_of(PreTrainedTokenizerFast(tokenizer_object=words, eos_token="end")) == 1
    assert padding_of(PreTrainedTokenizerFast(tokenizer_object=words, eos_token="end", pad_token="pad")) == 2
