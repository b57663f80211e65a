"""Attention in bfloat16 on a CPU: one product a group of query heads, with plain autograd.

torch's own kernel is written for inference: its backward pass was over a quarter of an alignment step (bench/NOTES.md).
Here the heads that share keys and values stand below each other as rows of one product, so that keys and values are
not repeated and the products run on the CPU's matrix units.

    weights = softmax(scaling * Q K^T + mask), out = weights V        Q [heads / groups * queries, D] of each group

Scores and weights are rounded to bfloat16, as in transformers' eager attention; the softmax itself is in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

NAME = "rgalign_grouped"
FAMILIES = ("llama", "qwen2", "qwen3")  # others may cap their scores or attend to sinks


def group_queries(model: Any) -> None:
    """Makes a causal model of :data:`FAMILIES` attend by :func:`grouped_attention`; another stays as it is."""
    decoder = model.get_decoder()
    if decoder.config.model_type not in FAMILIES:
        return
    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    for config in (decoder.config, *(layer.self_attn.config for layer in decoder.layers)):
        config._attn_implementation = NAME


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Args: query: [B, H, Q, D]. key, value: [B, G, K, D]. attention_mask: added to scores, [B or 1, 1, Q, K].

    Returns:
        [B, Q, H, D], and no weights.
    """
    batch, heads, queries, width = query.shape
    groups, keys = key.shape[1], key.shape[2]
    rows = (query * scaling).reshape(batch, groups, heads // groups * queries, width)
    scores = torch.matmul(rows, key.transpose(2, 3)).view(batch, groups, heads // groups, queries, keys)
    mask = attention_mask.clamp(min=torch.finfo(scores.dtype).min).to(scores.dtype)
    weights = F.softmax(scores + mask[:, :, None], dim=-1)
    weights = F.dropout(weights, dropout, module.training).view(batch, groups, -1, keys)
    out = torch.matmul(weights, value).view(batch, heads, queries, value.shape[-1])
    return out.transpose(1, 2).contiguous(), None
