"""Grouped attention is the model's own attention, in whatever order its products are computed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from rgalign.training.alignment.grouped_attention import NAME, group_queries
from rgalign.training.alignment.shared_prefix import share_prefix

SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def pair(family: str) -> tuple[Any, Any]:
    """(plain, grouped): the same model."""
    torch.manual_seed(5)
    plain: Any
    if family == "qwen3":
        plain = Qwen3ForCausalLM(Qwen3Config(**SHAPE))
    else:
        plain = LlamaForCausalLM(LlamaConfig(**SHAPE))
    grouped = copy.deepcopy(plain)
    group_queries(grouped)
    return plain, grouped


def batch() -> tuple[Tensor, Tensor]:
    """Rows of different lengths, padded on the right, that begin alike."""
    ids = torch.randint(61, (4, 20), generator=torch.Generator().manual_seed(1))
    ids[:, :9] = ids[0, :9]
    mask = torch.arange(20)[None] < torch.tensor([20, 13, 17, 20])[:, None]
    return ids, mask.long()


def states_and_gradients(model: Any, autocast: bool) -> tuple[Tensor, dict[str, Tensor]]:
    ids, mask = batch()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        states = model.get_decoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    real = states[mask.bool()].float()
    weights = torch.randn(real.shape, generator=torch.Generator().manual_seed(2))
    (real * weights).sum().backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return real.detach(), gradients


@pytest.mark.parametrize("shared", [False, True], ids=["plain", "shared prefix"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_states_and_gradients_are_the_models_own(family: str, shared: bool) -> None:
    plain, grouped = pair(family)
    if shared:
        share_prefix(grouped.get_decoder())
    expected, gradients = states_and_gradients(plain, autocast=False)
    states, found = states_and_gradients(grouped, autocast=False)
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-4)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-3)


def test_as_near_to_float32_as_the_models_own_bfloat16() -> None:
    exact = states_and_gradients(pair("llama")[0], autocast=False)[1]

    def distance(model: Any) -> float:
        gradients = states_and_gradients(model, autocast=True)[1]
        off = torch.cat([(gradients[name] - value).flatten() for name, value in exact.items()])
        return float(off.norm() / torch.cat([value.flatten() for value in exact.values()]).norm())

    plain, grouped = map(distance, pair("llama"))
    assert 1e-4 < grouped < 1.5 * plain


def test_later_tokens_and_padding_are_not_seen() -> None:
    _, grouped = pair("llama")
    ids, mask = batch()
    before = grouped.get_decoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    ids[:, 12:] = 60 - ids[:, 12:]  # padding of the second row begins at 13
    after = grouped.get_decoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(after[:, :12], before[:, :12])
    assert not torch.allclose(after[0, 12:], before[0, 12:])


def test_another_model_attends_as_before() -> None:
    plain, grouped = pair("llama")
    assert grouped.config._attn_implementation == NAME
    assert plain.config._attn_implementation != NAME


def test_a_family_whose_attention_is_another_stays_as_it_is() -> None:
    plain, _ = pair("llama")
    plain.get_decoder().config.model_type = "gemma2"
    group_queries(plain)
    assert plain.config._attn_implementation != NAME
