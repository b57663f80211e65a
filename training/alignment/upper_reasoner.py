"""Latent queries of a reasoner whose upper layers alone have changed: the lower states come from disk.

Packs prompts as :class:`HFReasoner` does and gives its vectors (to rounding), at the cost of the upper layers: with
6 of 30 layers trained a dataset is embedded again with a fifth of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rgalign.reasoner.hf import HFReasoner, Pooling, _Prefix
from rgalign.reasoner.prefix_tree import PrefixTree, TokenIds
from rgalign.training.alignment.lower_states import ROOT, LowerStates, addresses, tree_addresses
from rgalign.training.alignment.split_model import upper_part


class UpperReasoner(HFReasoner):
    """As :class:`HFReasoner` over the whole ``model``, with the same provenance.

    Args:
        model: the aligned model; its lower layers are those of ``states``.
        fingerprint: hash of the aligned model's files.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        states: LowerStates,
        *,
        pooling: Pooling = "ltp",
        fingerprint: str = "",
        max_batch_tokens: int = 256,
    ) -> None:
        upper = upper_part(model, states.num_layers, nn.Identity())
        super().__init__(upper, tokenizer, pooling=pooling, fingerprint=fingerprint, max_batch_tokens=max_batch_tokens)
        self._upper = self._decoder
        self._decoder = self._from_states
        self._states = states
        self._asked: list[bytes] = []  # addresses of the tokens of the forward pass under way
        self._root = ROOT
        self._nodes: list[bytes] = []  # of the last tree

    @torch.inference_mode()
    def embed(
        self,
        token_ids: Sequence[TokenIds],
        *,
        prefix_ids: Sequence[int] = (),
        on_prompts: Callable[[int], None] = lambda count: None,
    ) -> Tensor:
        """As :meth:`HFReasoner.embed`; lower states that are missing are computed and kept."""
        prompts = [self._checked(index, ids) for index, ids in enumerate(token_ids)]
        if prompts:
            self._states.fill(prompts, prefix_ids=prefix_ids)
        return super().embed(token_ids, prefix_ids=prefix_ids, on_prompts=on_prompts)

    def _forward(self, tree: PrefixTree, prefix: _Prefix) -> Tensor:
        self._nodes = tree_addresses(tree, self._root, self._nodes)
        self._asked = self._nodes[len(tree.given) :]
        return super()._forward(tree, prefix)

    def _prefix(self, ids: tuple[int, ...]) -> _Prefix:
        self._asked = addresses(np.asarray(ids, np.int32))
        self._root = self._asked[-1] if ids else ROOT
        return super()._prefix(ids)

    def _from_states(self, *, input_ids: Tensor, **arguments: Any) -> Any:
        assert input_ids.shape == (1, len(self._asked)), "one address a token"
        return self._upper(inputs_embeds=self._states.take(self._asked)[None], **arguments)
