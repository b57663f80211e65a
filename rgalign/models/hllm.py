"""HLLM's item encoder: an intent's text to one vector, through a causal LM (Chen et al. 2024; its code's contract, A4).

    text    = "Compress the following sentence into embedding: " + "{key}: {value}" of each field, no separator
    input   = [embedding of each of the text's first max_text_length tokens ; v],   v learned, N(0, 0.02)
    item    = last layer's state (after the final norm) at v
    position of token t = max_text_length - len(text) + t, so v always stands at max_text_length
    item_token_num = 0: no v; the mean over the text's states

``forward`` is the definition. Two facts make the LM affordable on a CPU, and both agree with it:

- Attention is causal, so nothing in the text ever sees v. As long as the LM is frozen, the text's keys and values are
  constants: ``text_states`` computes them once, and each training step runs one token an intent (``item_states``).
- Rotary positions are relative, so with them only distances count, and texts that begin alike (all have the prompt)
  share the states of their beginning (text_states.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rgalign.errors import DataError
from rgalign.models.text_encoder import OnTexts, length_batches, masked_mean, pad_right
from rgalign.models.text_states import TextStates, cache_of, cache_parts, is_rotary, stack_states, tree_batches
from rgalign.plain_text import PlainTextTokenizer

TREE_TOKENS = 512  # distinct tokens of one packed pass: every one of them is masked against every other
ITEM_PROMPT = "Compress the following sentence into embedding: "


def item_text(fields: Mapping[str, str]) -> str:
    """The text of one intent, as HLLM writes it."""
    return ITEM_PROMPT + "".join(f"{key}: {value}" for key, value in fields.items())


class HLLMItemEncoder(nn.Module):
    """Texts -> [n, D] item states.

    Args:
        model: a transformers causal LM.
        tokenizer: its fast tokenizer. Text cannot form control tokens; a leading BOS is kept where it is the habit.
        item_token_num: 1, or 0 for mean pooling. HLLM allows no more than one.
        max_text_length: tokens of a text, the prompt included; the rest is cut.
        batch_tokens: tokens of one forward pass without gradients.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        item_token_num: Literal[0, 1] = 1,
        max_text_length: int = 256,
        batch_tokens: int = 2048,
        fingerprint: str = "",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.decoder = model.get_decoder()
        self.embed_tokens = [model.get_input_embeddings()]  # in a list: the decoder owns it
        self.max_text_length = max_text_length
        self.batch_tokens = batch_tokens
        self.fingerprint = fingerprint
        self.dim: int = model.config.hidden_size
        # Mamba and linear-attention layers keep a running state instead of keys and values: `forward` only.
        self.stores_keys = not getattr(model, "_is_stateful", False)
        self.shares_beginnings = self.stores_keys and is_rotary(model.config)
        self._plain = PlainTextTokenizer(tokenizer)
        empty = list(tokenizer("")["input_ids"])
        self._bos = empty[:1] if empty[:1] == [tokenizer.bos_token_id] else []
        self.item_token: nn.Parameter | None = None
        if item_token_num:
            drawn = torch.randn(self.dim, generator=torch.Generator().manual_seed(seed)) * 0.02
            self.item_token = nn.Parameter(drawn.to(model.device))

    @property
    def device(self) -> torch.device:
        device: torch.device = self.embed_tokens[0].weight.device
        return device

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of whole texts (see :func:`item_text`), cut to ``max_text_length``.

        Raises:
            DataError: a text without a token.
        """
        ids = [np.frombuffer(piece, dtype=np.int32).tolist() for piece in self._plain.encode(texts)]
        rows = [[*self._bos, *row][: self.max_text_length] for row in ids]
        for text, row in zip(texts, rows, strict=True):
            if not row:
                raise DataError(where="intent text", required="at least one token", received=repr(text))
        return rows

    def forward(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """The definition: one pass over the whole texts.

        Args:
            token_ids: n non-empty rows of any lengths.

        Returns:
            [n, D] float32; each row as it is alone.
        """
        if self.item_token is None:
            hidden, mask = self._text_pass(token_ids)
            return masked_mean(hidden, mask)
        ids, text = pad_right([[*row, 0] for row in token_ids])  # the 0 holds the item token's place
        ids, mask = ids.to(self.device), text.to(self.device)
        last = mask.sum(dim=1) - 1
        rows = torch.arange(len(ids), device=self.device)
        embeds = self.embed_tokens[0](ids)
        embeds = embeds.index_put((rows, last), self.item_token.to(embeds.dtype))
        output = self.decoder(
            inputs_embeds=embeds, attention_mask=mask.long(), position_ids=self._positions(ids, last), use_cache=False
        )
        state: Tensor = output.last_hidden_state[rows, last].float()
        return state

    @torch.no_grad()
    def encode(self, texts: Sequence[str], *, on_texts: OnTexts = lambda count: None) -> Tensor:
        """Raw item states of whole texts: [N, D] float32 on the CPU."""
        token_ids = self.tokenize(texts)
        states = torch.empty(len(token_ids), self.dim)
        for rows, texts_, means in self._text_batches(token_ids):
            if texts_ is None:
                states[rows] = self([token_ids[row] for row in rows]).cpu()
            else:
                states[rows] = (means if self.item_token is None else self.item_states(texts_)).cpu()
            on_texts(len(rows))
        return states

    def _positions(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Right-aligned; padding behind a row stays at the last position."""
        steps = torch.arange(ids.shape[1], device=ids.device)
        return (self.max_text_length - lengths.unsqueeze(-1) + steps).clamp_max(self.max_text_length)

    def _text_pass(self, token_ids: Sequence[Sequence[int]], cache: Any = None) -> tuple[Tensor, Tensor]:
        """Hidden states [n, L, D] float32 of the bare texts, and their mask [n, L]."""
        ids, mask = pad_right(token_ids)
        ids, mask = ids.to(self.device), mask.to(self.device)
        output = self.decoder(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=self._positions(ids, mask.sum(dim=1)),
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state.float(), mask

    @torch.no_grad()
    def text_states(
        self, token_ids: Sequence[Sequence[int]], *, on_texts: OnTexts = lambda count: None
    ) -> list[TextStates]:
        """Keys and values of each text, computed once for a frozen LM."""
        assert self.stores_keys, "a model of attention layers only"
        found: dict[int, TextStates] = {}
        for rows, texts, _ in self._text_batches(token_ids):
            assert texts is not None
            found |= dict(zip(rows, texts, strict=True))
            on_texts(len(rows))
        return [found[row] for row in range(len(token_ids))]

    def _text_batches(
        self, token_ids: Sequence[Sequence[int]]
    ) -> Iterator[tuple[list[int], list[TextStates] | None, Tensor]]:
        """Row numbers, their stored states (None: the model has none), and the mean [n, D] of their hidden states."""
        if self.shares_beginnings:
            yield from tree_batches(self.decoder, token_ids, min(self.batch_tokens, TREE_TOKENS), self.device)
            return
        for rows in length_batches([len(ids) for ids in token_ids], self.batch_tokens):
            chosen = [token_ids[row] for row in rows]
            if not self.stores_keys:
                yield rows, None, torch.empty(0)
                continue
            cache = cache_of(None)
            hidden, mask = self._text_pass(chosen, cache)
            packed = [torch.stack([part[row] for part in cache_parts(cache)]) for row in range(len(rows))]
            texts = [
                TextStates(states[:, :, : len(ids)], self.max_text_length)
                for states, ids in zip(packed, chosen, strict=True)
            ]
            yield rows, texts, masked_mean(hidden, mask)

    def item_states(self, texts: Sequence[TextStates]) -> Tensor:
        """What ``forward`` returns, one token an intent on the texts' stored keys and values.

        Gradients reach the item token; the LM's own weights must be frozen.
        """
        assert self.item_token is not None, "mean pooling has no item token"
        lengths = torch.tensor([text.length for text in texts], device=self.device)
        longest = int(lengths.max())
        mask = torch.arange(longest + 1, device=self.device) < lengths.unsqueeze(-1)
        mask[:, -1] = True  # the item token's own place, behind the padding
        token = self.item_token.to(self.embed_tokens[0].weight.dtype)
        output = self.decoder(
            inputs_embeds=token.expand(len(texts), 1, -1),
            attention_mask=mask.long(),
            position_ids=torch.tensor([[text.item_position] for text in texts], device=self.device),
            past_key_values=cache_of(stack_states(texts, longest)),
            use_cache=True,
        )
        state: Tensor = output.last_hidden_state[:, 0].float()
        return state
