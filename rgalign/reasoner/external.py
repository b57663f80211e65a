"""Pooling ``external``: the reasoner writes the user's question, and a sentence encoder reads it (paper, Table 3).

    e = encoder(decode(prompt))        greedy decoding, so a prompt has one question and one vector

What a service would do without latent queries: it decodes up to ``max_new_tokens`` tokens where they need one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from rgalign.errors import DataError
from rgalign.models.text_encoder import TextEncoder, length_batches
from rgalign.reasoner.continuation import continued
from rgalign.reasoner.hf import HFReasoner
from rgalign.reasoner.prefix_tree import TokenIds


class ExternalReasoner:
    """A causal LM that decodes a question, and the encoder of that question.

    Args:
        writer: the language model; its own pooling is not used.
        encoder: text -> vector.
        max_new_tokens: of a question; a longer one is cut.
        batch_tokens: padded prompt tokens decoded together.
    """

    def __init__(
        self, writer: HFReasoner, encoder: TextEncoder, *, max_new_tokens: int = 24, batch_tokens: int = 16384
    ) -> None:
        self.writer = writer
        self.tokenizer = writer.tokenizer
        self.encoder = encoder
        self.max_new_tokens = max_new_tokens
        self.batch_tokens = batch_tokens
        self.hidden_size = encoder.encode(["?"]).shape[1]
        self.provenance = {
            **writer.provenance,
            "pooling": "external",
            "encoder": encoder.fingerprint,
            "max_new_tokens": str(max_new_tokens),
        }

    def questions(self, token_ids: Sequence[TokenIds], *, prefix_ids: Sequence[int] = ()) -> list[str]:
        """The question decoded for each prompt, B of them; arguments as in :meth:`HFReasoner.embed`."""
        if not len(token_ids):
            raise DataError(where="ExternalReasoner.questions", required="at least one prompt", received="none")
        prompts = [np.asarray(ids, dtype=np.int32) for ids in token_ids]
        for row, prompt in enumerate(prompts):
            if not prompt.size:
                raise DataError(where=f"prompt {row}", required="a non-empty row of token ids", received="none")
        texts = [""] * len(prompts)
        lengths = [len(prefix_ids) + len(prompt) for prompt in prompts]
        for rows in length_batches(lengths, self.batch_tokens):
            for row, text in zip(rows, self._decode([prompts[row] for row in rows], prefix_ids), strict=True):
                texts[row] = text
        return texts

    def embed(
        self,
        token_ids: Sequence[TokenIds],
        *,
        prefix_ids: Sequence[int] = (),
        on_prompts: Callable[[int], None] = lambda count: None,
    ) -> Tensor:
        """[B, S] float32 vectors of the decoded questions; arguments and errors as in :meth:`HFReasoner.embed`."""
        vectors = self.encoder.encode(self.questions(token_ids, prefix_ids=prefix_ids))
        on_prompts(len(vectors))
        return vectors

    def _decode(self, prompts: list[TokenIds], prefix_ids: Sequence[int]) -> list[str]:
        model, tokenizer = self.writer.model, self.writer.tokenizer
        written = continued(model, tokenizer, prompts, prefix_ids, max_new_tokens=self.max_new_tokens)
        texts: list[str] = tokenizer.batch_decode(written, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]
