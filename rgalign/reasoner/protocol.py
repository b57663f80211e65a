"""What every backend of the reasoner is: token ids of prompts -> latent queries, with the hash of what made them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from rgalign.reasoner.prefix_tree import TokenIds


class Reasoner(Protocol):
    """HFReasoner is the definition; every other backend is compared with it (`rgalign engine parity`).

    Args:
        tokenizer: of the model, for the prompts' encoder; a backend reads token ids only.
        hidden_size: D.
        provenance: what decides a vector: model, pooling, dtype, and the engine where it is another one.
    """

    tokenizer: Any
    hidden_size: int
    provenance: dict[str, str]

    def embed(
        self, token_ids: Sequence[TokenIds], *, prefix_ids: Sequence[int] = ..., on_prompts: Callable[[int], None] = ...
    ) -> Tensor:
        """[B, D] float32: the state after the final norm at each prompt's last token, not normalised.

        Args:
            token_ids: B non-empty int32 arrays, each what follows ``prefix_ids``.
            prefix_ids: tokens that stand before every prompt.
            on_prompts: told how many prompts are finished, as they are.

        Raises:
            DataError: no prompt, an empty one, one that is too long, or a token outside the vocabulary.
        """
