"""Preferences as token ids: [prompt; query; end of turn], the prompt by the very encoder that serving has.

Queries are user-visible text from teachers: cleaned and tokenised with added tokens off, so none can hold a control
token; the end of turn is appended by us.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rgalign.chat_format import ChatFormat
from rgalign.data.dataset import Dataset
from rgalign.errors import ConfigError, DataError
from rgalign.plain_text import PlainTextTokenizer, clean
from rgalign.prompt import PromptEncoder
from rgalign.training.alignment.preferences import Preferences
from rgalign.training.teachers.teacher import session_contexts


@dataclass(frozen=True)
class TokenisedPreference:
    """Token ids of one preference; ``row`` is its place among them."""

    row: int
    prompt: list[int]
    chosen: list[int]
    rejected: list[list[int]]


def tokenise(
    preferences: Preferences, dataset: Dataset, encoder: PromptEncoder, tokenizer: Any, *, max_rejected: int
) -> list[TokenisedPreference]:
    """One entry a preference, in order; a rejected query that tokenises like the chosen one is left out.

    Raises:
        DataError: a chosen query without a token.
    """
    plain = PlainTextTokenizer(tokenizer)
    end = end_of_turn(tokenizer, encoder.chat_format)
    rows = np.array([item.split_row for item in preferences.items], np.int64)
    contexts = session_contexts(dataset, preferences.split, rows)
    slots = encoder.encode_many([dict(context.session) for context in contexts])
    sessions = []
    for item, ids in zip(preferences.items, slots, strict=True):
        chosen, *rejected = (_query(plain, text, end) for text in (item.chosen, *item.rejected))
        if len(chosen) == 1:
            where = f"chosen query of session {item.session_id!r}"
            raise DataError(where=where, required="a text with tokens", received=repr(item.chosen))
        different = [other for other in rejected if other != chosen and len(other) > 1]
        prompt = encoder.full_ids(ids).tolist()
        sessions.append(TokenisedPreference(item.row, prompt, chosen, different[:max_rejected]))
    return sessions


def end_of_turn(tokenizer: Any, chat: ChatFormat) -> int:
    """The id that closes the assistant's turn: the first control token of the format's closing, else end of sequence.

    Raises:
        ConfigError: the tokenizer has neither.
    """
    known = PlainTextTokenizer(tokenizer).control_ids
    for part in chat.parts(chat.closing):
        if part in known:
            return known[part]
    if tokenizer.eos_token_id is None:
        required = "a chat format with an end of turn, or a tokenizer with an end-of-sequence token"
        raise ConfigError(where="tokenizer", required=required, received=f"chat format {chat.name!r} and none")
    return int(tokenizer.eos_token_id)


def _query(plain: PlainTextTokenizer, text: str, end: int) -> list[int]:
    return [*np.frombuffer(plain.encode([clean(text).strip()])[0], np.int32).tolist(), end]
