"""The reasoner by definition: a Hugging Face causal LM, prompt token ids -> latent queries.

    e_LTP = H[-1]: the final-layer state, after the final norm, at the last prompt token (paper, eqs 2-3)

The last token is found by its place in the prompt, never by -1: a row has the vector it has alone. Keys and values of
the constant prefix are computed once, and prompts of one call share whatever else they begin with (prefix_tree.py); a
model with windows or states in place of full attention reads whole prompts, one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rgalign.errors import DataError
from rgalign.files import sha256_json
from rgalign.reasoner.prefix_tree import PrefixTree, TokenIds, prefix_trees
from rgalign.reasoner.pretrained import load_causal_lm, model_fingerprint

Pooling = Literal["ltp", "mean", "eos"]


class HFReasoner:
    """A frozen causal LM read at its last prompt token.

    Args:
        model: a transformers causal LM in evaluation mode.
        pooling: ``ltp`` the last prompt token; ``mean`` over all prompt tokens; ``eos`` the last token after an
            end-of-sequence token is appended.
        fingerprint: hash of the model's files, for provenance.
        max_batch_tokens: new tokens of one forward pass; longer calls are split.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        pooling: Pooling = "ltp",
        fingerprint: str = "",
        max_batch_tokens: int = 256,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.max_batch_tokens = max_batch_tokens
        self.hidden_size: int = model.config.hidden_size
        self._decoder = model.get_decoder()
        self._last_prefix: _Prefix | None = None
        self._shares = attends_to_all(model)
        self._eos: int = tokenizer.eos_token_id if tokenizer is not None else model.config.eos_token_id
        dtype = str(model.dtype).removeprefix("torch.")
        self.provenance: dict[str, str] = {"model": fingerprint, "pooling": pooling, "dtype": dtype}

    @classmethod
    def from_pretrained(
        cls, ref: str, *, dtype: torch.dtype = torch.float32, pooling: Pooling = "ltp", max_batch_tokens: int = 256
    ) -> HFReasoner:
        """Loads ``smollm2``, a directory, a GGUF file or a hub name (see :mod:`rgalign.reasoner.pretrained`)."""
        model, tokenizer = load_causal_lm(ref, dtype)
        fingerprint = model_fingerprint(ref)
        return cls(model, tokenizer, pooling=pooling, fingerprint=fingerprint, max_batch_tokens=max_batch_tokens)

    @property
    def hash(self) -> str:
        return sha256_json(self.provenance)

    @torch.inference_mode()
    def embed(
        self,
        token_ids: Sequence[TokenIds],
        *,
        prefix_ids: Sequence[int] = (),
        on_prompts: Callable[[int], None] = lambda count: None,
    ) -> Tensor:
        """Latent queries of whole prompts.

        Args:
            token_ids: B non-empty int32 arrays of any lengths, in any order, each what follows ``prefix_ids``.
            prefix_ids: tokens that stand before every prompt; their keys and values are kept for the next call.
            on_prompts: told how many prompts each forward pass finished.

        Returns:
            [B, D] float32, not normalised.

        Raises:
            DataError: an empty prompt or call, or a token outside the vocabulary.
        """
        prompts = [self._checked(index, ids) for index, ids in enumerate(token_ids)]
        if not prompts:
            raise DataError(where="HFReasoner.embed", required="at least one prompt", received="none")
        latents = torch.empty(len(prompts), self.hidden_size)
        if not self._shares:
            for row, ids in enumerate(prompts):
                whole = torch.tensor([[*prefix_ids, *ids.tolist()]], device=self.model.device)
                latents[row] = self.embed_padded(whole, torch.ones_like(whole))[0].cpu()
                on_prompts(1)
            return latents
        prefix = self._prefix(tuple(prefix_ids))
        for tree in prefix_trees(prompts, self.max_batch_tokens):
            latents[tree.rows] = self._forward(tree, prefix).float().cpu()
            on_prompts(len(tree.rows))
        return latents

    @torch.inference_mode()
    def embed_padded(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Latent queries of a padded batch, whichever side the padding is on.

        Args:
            input_ids: [B, T]; attention_mask: [B, T], 1 on prompt tokens, which are contiguous in a row.

        Returns:
            [B, D] float32.
        """
        positions = (attention_mask.long().cumsum(dim=1) - 1).clamp_min(0)
        output = self._decoder(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=False
        )
        hidden: Tensor = output.last_hidden_state
        if self.pooling == "mean":
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            return ((hidden * mask).sum(dim=1) / mask.sum(dim=1)).float()
        index = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = torch.where(attention_mask.bool(), index, -1).amax(dim=1)
        return hidden[torch.arange(len(last)), last].float()

    def _checked(self, index: int, ids: TokenIds) -> TokenIds:
        array = np.asarray(ids, dtype=np.int32)
        size = self.model.config.vocab_size
        if array.ndim != 1 or array.size == 0:
            received = f"shape {array.shape}"
            raise DataError(where=f"prompt {index}", required="a non-empty row of token ids", received=received)
        if array.min() < 0 or array.max() >= size:
            received = f"{int(array.min())}..{int(array.max())}"
            raise DataError(where=f"prompt {index}", required=f"token ids in 0..{size - 1}", received=received)
        if self.pooling == "eos":
            return np.append(array, np.int32(self._eos))
        return array

    def _forward(self, tree: PrefixTree, prefix: _Prefix) -> Tensor:
        """[rows, D] of one packed tree; the cache holds the constant prefix and the previous tree."""
        device = self.model.device
        given = prefix.length + torch.from_numpy(tree.given).to(device)
        prefix.keep(torch.cat([torch.arange(prefix.length, device=device), given]))
        size = len(tree.token_ids)
        mask = torch.ones(size, prefix.length + len(given) + size, dtype=torch.bool)
        mask[:, prefix.length :] = torch.from_numpy(tree.ancestors)
        output = self._decoder(
            input_ids=torch.from_numpy(tree.token_ids)[None].to(device),
            attention_mask=mask[None, None].to(device),
            position_ids=torch.from_numpy(tree.depths + prefix.length)[None].to(device),
            past_key_values=prefix.cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state[0]
        if self.pooling == "mean":
            prefix.states = torch.cat([prefix.states[tree.given], hidden.float()])  # of given and new nodes
            sums = torch.stack([prefix.states[path].sum(dim=0) for path in tree.paths])
            lengths = torch.tensor([len(path) + prefix.length for path in tree.paths], device=device)
            return (sums + prefix.hidden_sum) / lengths.unsqueeze(-1)
        return hidden[torch.tensor([int(path[-1]) - len(given) for path in tree.paths], device=device)]

    def _prefix(self, ids: tuple[int, ...]) -> _Prefix:
        """Keys and values of the constant prefix, computed once and kept until another prefix is asked for."""
        if self._last_prefix is None or self._last_prefix.ids != ids:
            from transformers import DynamicCache

            cache = DynamicCache(config=self.model.config)
            hidden_sum = torch.zeros(self.hidden_size, device=self.model.device)
            if ids:
                row = torch.tensor([ids], device=self.model.device)
                output = self._decoder(input_ids=row, past_key_values=cache, use_cache=True)
                hidden_sum = output.last_hidden_state[0].float().sum(dim=0)
            self._last_prefix = _Prefix(ids, cache, hidden_sum, hidden_sum.new_empty(0, self.hidden_size))
        return self._last_prefix


def attends_to_all(model: Any) -> bool:
    """Whether every layer attends to all that stands before, so that prompts can share keys of what they begin with."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


@dataclass
class _Prefix:
    """The constant prefix and, behind it, the tree that was computed last."""

    ids: tuple[int, ...]
    cache: Any
    hidden_sum: Tensor  # [D] of the prefix's own states
    states: Tensor  # [nodes, D] of the last tree, for mean pooling

    @property
    def length(self) -> int:
        return len(self.ids)

    def keep(self, positions: Tensor) -> None:
        """Drops the keys and values of all other positions."""
        for layer in self.cache.layers:
            if layer.keys is not None:
                layer.keys, layer.values = layer.keys[:, :, positions], layer.values[:, :, positions]
