"""Rows that begin alike: states and gradients of the plain forward pass, and the beginning is computed once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rgalign.training.alignment.shared_prefix import MIN_TOKENS, common_tokens, share_prefix

PAD = 258
COMMON = 12


def batch(common: int, lengths: tuple[int, ...] = (20, 31, 25)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 250, (len(lengths), max(lengths)), generator=generator)
    ids[:, :common] = ids[:1, :common]
    ids[:, common] = torch.arange(len(lengths)) + 1
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return ids.masked_fill(mask == 0, PAD), mask


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_states_and_gradients(tiny_model: Callable[..., Any], family: str) -> None:
    plain = tiny_model(family).double().train().get_decoder()
    shared = copy.deepcopy(plain)
    share_prefix(shared)
    shared = copy.deepcopy(shared)  # a copy computes with its own weights
    ids, mask = batch(COMMON)
    weight = torch.randn(*ids.shape, plain.config.hidden_size, dtype=torch.float64) * mask[..., None]
    gradients = []
    for decoder in (plain, shared):
        states = decoder(input_ids=ids, attention_mask=mask).last_hidden_state
        (states * weight).sum().backward()
        gradients.append({name: value.grad for name, value in decoder.named_parameters() if value.grad is not None})
    real = mask.bool()
    expected = plain(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(states[real], expected[real], atol=1e-6, rtol=0)
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) > 10
    for name, value in gradients[0].items():
        assert value.abs().max() > 0
        size = value.abs().max().item()
        torch.testing.assert_close(gradients[1][name], value, atol=1e-5 * size, rtol=1e-4)  # norms are float32 inside


@pytest.mark.parametrize(("common", "passes"), [(COMMON, [(1, COMMON), (3, 19)]), (MIN_TOKENS - 1, [(3, 31)])])
def test_computed_once(tiny_model: Callable[..., Any], common: int, passes: list[tuple[int, int]]) -> None:
    decoder = tiny_model().get_decoder()
    share_prefix(decoder)
    seen: list[tuple[int, int]] = []
    decoder.layers[0].mlp.register_forward_pre_hook(lambda module, given: seen.append(tuple(given[0].shape[:2])))
    ids, mask = batch(common)
    decoder(input_ids=ids, attention_mask=mask)
    assert seen == passes


def test_what_counts_as_common() -> None:
    ids, mask = batch(COMMON)
    assert common_tokens(ids, mask) == common_tokens(ids, None) == COMMON
    assert common_tokens(ids[:1].repeat(2, 1), None) == ids.shape[1] - 1
    short = mask.clone()
    short[1, 5:] = 0
    assert common_tokens(ids, short) == 5
    other = ids.clone()
    other[2, 0] = 0
    assert common_tokens(other, mask) == 0
