"""Keys and values of texts under a frozen causal LM: computed once, read again for every token that follows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rgalign.reasoner.prefix_tree import prefix_trees


@dataclass(frozen=True)
class TextStates:
    """One text's keys and values [2 * layers, kv_heads, length, head_dim], and the item token's position after it."""

    packed: Tensor
    item_position: int

    @property
    def length(self) -> int:
        return self.packed.shape[2]


def is_rotary(config: Any) -> bool:
    """Whether positions act through their distances alone, at least up to the lengths of intents' texts."""
    rope = getattr(config, "rope_parameters", None)
    return isinstance(rope, Mapping) and rope.get("rope_type") in ("default", "linear", "llama3", "yarn")


def cache_parts(cache: Any) -> list[Tensor]:
    """Keys and values of each layer in turn."""
    return [part for layer in cache.layers for part in (layer.keys, layer.values)]


def cache_of(packed: Tensor | None) -> Any:
    """A transformers cache of [2 * layers, kv_heads, length, head_dim] (one text) or [2 * layers, n, kv_heads, ...]."""
    from transformers import DynamicCache

    cache: Any = DynamicCache()  # without the model's config: no layer forgets, whatever its window
    if packed is not None:
        for layer, part in enumerate(range(0, len(packed), 2)):
            keys, values = (states if states.ndim == 4 else states[None] for states in packed[part : part + 2])
            cache.update(keys, values, layer)
    return cache


def stack_states(texts: Sequence[TextStates], longest: int) -> Tensor:
    """[2 * layers, n, kv_heads, longest, head_dim], padded behind with zeros."""
    parts, heads, _, size = texts[0].packed.shape
    padded = texts[0].packed.new_zeros(parts, len(texts), heads, longest, size)
    for row, text in enumerate(texts):
        padded[:, row, :, : text.length] = text.packed
    return padded


def tree_batches(
    decoder: Any, token_ids: Sequence[Sequence[int]], max_tokens: int, device: torch.device
) -> Iterator[tuple[list[int], list[TextStates], Tensor]]:
    """Texts in sorted order, what two have in common computed once; for rotary models.

    Positions count from the text's beginning: only distances matter.

    Yields:
        Row numbers of n texts, their states, and the mean [n, D] float32 of their hidden states.
    """
    rows_of_ids = [np.asarray(ids, dtype=np.int32) for ids in token_ids]
    packed, hidden = torch.empty(0), torch.empty(0)
    for tree in prefix_trees(rows_of_ids, max_tokens):
        given = torch.from_numpy(tree.given).to(device)
        cache = cache_of(packed[:, :, given]) if len(given) else cache_of(None)
        output = decoder(
            input_ids=torch.from_numpy(tree.token_ids)[None].to(device),
            attention_mask=torch.from_numpy(tree.ancestors)[None, None].to(device),
            position_ids=torch.from_numpy(tree.depths)[None].to(device),
            past_key_values=cache,
            use_cache=True,
        )
        new = output.last_hidden_state[0].float()
        hidden = torch.cat([hidden[given], new]) if len(given) else new
        packed = torch.cat(cache_parts(cache))  # of given and new nodes, as the tree numbers them
        paths = [torch.from_numpy(path).to(device) for path in tree.paths]
        texts = [TextStates(packed[:, :, path], len(path)) for path in paths]
        yield tree.rows, texts, torch.stack([hidden[path].mean(dim=0) for path in paths])
