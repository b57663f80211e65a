"""Continued prompts: what transformers writes for each alone, whatever stands beside it or is shared before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from rgalign.reasoner.continuation import continued, padding_of

PREFIX = [5, 6, 7]
WORDS, END, PAD = 50, 3, 1
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def drawn(model: Any) -> Any:
    torch.nn.init.normal_(model.get_output_embeddings().weight)
    return model.eval()


@pytest.fixture
def model() -> Any:
    torch.manual_seed(1)
    return drawn(LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, num_key_value_heads=2, eos_token_id=END, **SIZES)))


def tokenizer(end_of_turn: int | None = None) -> PreTrainedTokenizerFast:
    names = {word: f"w{word}" for word in range(WORDS)} | ({} if end_of_turn is None else {end_of_turn: "<|im_end|>"})
    words = Tokenizer(WordLevel({name: word for word, name in names.items()}, unk_token="w0"))
    if end_of_turn is not None:
        words.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=f"w{END}", pad_token=f"w{PAD}")


def prompts() -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return [rng.integers(4, WORDS, length).astype(np.int32) for length in (4, 1, 11, 7)]


def alone(model: Any, ids: list[int]) -> list[int]:
    row = torch.tensor([ids])
    mask = torch.ones_like(row)
    written = model.generate(row, attention_mask=mask, do_sample=False, max_new_tokens=8, pad_token_id=PAD)
    found: list[int] = written[0, len(ids) :].tolist()
    return found


def together(model: Any, prefix: list[int]) -> list[list[int]]:
    found: list[list[int]] = continued(model, tokenizer(), prompts(), prefix, max_new_tokens=8).tolist()
    return found


def each_alone(model: Any, prefix: list[int]) -> list[list[int]]:
    expected = [alone(model, [*prefix, *ids.tolist()]) for ids in prompts()]
    width = max(map(len, expected))
    return [row + [PAD] * (width - len(row)) for row in expected]


@pytest.mark.parametrize("prefix", [PREFIX, []], ids=["prefix", "no prefix"])
def test_each_prompt_is_continued_as_it_is_alone(model: Any, prefix: list[int]) -> None:
    found = together(model, prefix)
    assert found == each_alone(model, prefix)
    assert len({tuple(row) for row in found}) == len(found)


def test_so_is_that_of_a_model_whose_window_is_shorter_than_the_batch_is_wide() -> None:
    torch.manual_seed(2)
    config = Gemma3TextConfig(
        vocab_size=WORDS, num_key_value_heads=2, head_dim=8, sliding_window=6, eos_token_id=END, **SIZES
    )
    windowed = drawn(Gemma3ForCausalLM(config))
    for layer in windowed.get_decoder().layers:  # so that what is attended to decides what is written
        torch.nn.init.constant_(layer.post_attention_layernorm.weight, 20.0)
    assert set(windowed.config.layer_types) == {"sliding_attention"}
    found = together(windowed, PREFIX)
    assert found == each_alone(windowed, PREFIX)
    assert len({tuple(row) for row in found}) > 1


def test_a_checkpoint_s_own_penalties_are_left_out(model: Any) -> None:
    plain = together(model, PREFIX)
    model.generation_config.repetition_penalty = 50.0
    assert each_alone(model, PREFIX) != plain
    assert together(model, PREFIX) == plain


def test_an_answer_ends_with_the_turn_though_the_model_names_another_end(model: Any) -> None:
    free = continued(model, tokenizer(), prompts()[:1], max_new_tokens=8)[0].tolist()
    marked = tokenizer(free[2])
    assert continued(model, marked, prompts()[:1], max_new_tokens=8)[0].tolist() == free[:3]


def test_the_ends_that_only_the_checkpoint_names_count_too(model: Any) -> None:
    free = continued(model, tokenizer(), prompts()[:1], max_new_tokens=8)[0].tolist()
    model.generation_config.eos_token_id = [END, free[2]]
    assert continued(model, tokenizer(), prompts()[:1], max_new_tokens=8)[0].tolist() == free[:3]


def test_the_head_reads_states_in_one_piece_and_is_left_as_it_was(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    forward = model.lm_head.forward
    monkeypatch.setattr(model.lm_head, "forward", lambda states: seen.append(states.is_contiguous()) or forward(states))
    continued(model, tokenizer(), prompts(), max_new_tokens=3)
    assert seen == [True, True, True]
    with pytest.raises(ValueError, match="max_new_tokens"):
        continued(model, tokenizer(), prompts(), max_new_tokens=0)
    assert not model.lm_head._forward_pre_hooks


def test_padding_is_the_tokenizer_s_own_or_the_end_of_sequence() -> None:
    assert padding_of(tokenizer()) == PAD
    assert padding_of(PreTrainedTokenizerFast(tokenizer_object=tokenizer().backend_tokenizer, eos_token="w3")) == END
