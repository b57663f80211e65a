"""What the rows of a batch have in common at their start is computed once: the prompt's constant part, mostly.

A causal decoder's states at the first n tokens depend on these alone. Rows [B, T] that agree in them are computed as
one row of n tokens and B rows of T - n that attend to its keys and values; autograd sums the B gradients there. The
states are those of the plain forward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

MIN_TOKENS = 8  # below, two passes cost more than they save


def share_prefix(decoder: Any) -> None:
    """Makes ``decoder`` (Llama and Qwen families) compute common beginnings once."""
    decoder.__class__ = type(f"SharedPrefix{type(decoder).__name__}", (_SharedPrefix, type(decoder)), {})


def common_tokens(input_ids: Tensor, attention_mask: Tensor | None) -> int:
    """With how many equal real tokens all rows [B, T] begin; the last column never counts."""
    same = (input_ids == input_ids[:1]).all(dim=0)
    if attention_mask is not None:
        same &= attention_mask.bool().all(dim=0)
    return int(same[:-1].long().cumprod(dim=0).sum())


class _SharedPrefix:
    """Mixed in before a decoder's class."""

    config: Any
    embed_tokens: Any

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        **arguments: Any,
    ) -> Any:
        whole: Any = super().forward  # type: ignore[misc]
        plain = input_ids is None or len(input_ids) < 2 or position_ids is not None or past_key_values is not None
        shared = 0 if plain or input_ids is None else common_tokens(input_ids, attention_mask)
        if input_ids is None or shared < MIN_TOKENS:
            return whole(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, **arguments)
        embedded = self.embed_tokens(input_ids)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        cache = DynamicCache(config=self.config)
        arguments["use_cache"] = True
        first = whole(inputs_embeds=embedded[:1, :shared], past_key_values=cache, **arguments).last_hidden_state
        cache.batch_repeat_interleave(len(input_ids))
        rest = whole(
            inputs_embeds=embedded[:, shared:], attention_mask=mask, past_key_values=cache, **arguments
        ).last_hidden_state
        return BaseModelOutputWithPast(last_hidden_state=torch.cat([first.expand(len(input_ids), -1, -1), rest], dim=1))
