"""Untrusted text to token ids, with no way to reach a control token.

``encode(..., split_special_tokens=True)`` is not that way: transformers 5 still turns added tokens that are not marked
special into their single ids (Qwen3: <think>, <tool_call>, <|fim_prefix|> and nine more). So the tokenizer's model gets
a second tokenizer round it that has no added tokens; to that one their text is ordinary text.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from rgalign.errors import ConfigError
from rgalign.files import sha256_json

MAX_CHARS = 1000  # of one head, item or tail; verbalised values are short
_CACHED_CHARS = 200  # longer pieces hardly repeat and would make the cache's memory unbounded
_CACHED_PIECES = 65_536
_JOINERS = "\u200c\u200d"  # format characters that Indic and Persian words and emoji are written with
_SPACES = re.compile(r"\s+")


def clean(text: str) -> str:
    """One line of text: whitespace runs to one space, no control, format or surrogate characters, MAX_CHARS at most."""
    text = text[:MAX_CHARS]
    if text.isprintable() and "  " not in text:
        return text
    return _SPACES.sub(" ", "".join(map(_visible, text)))


def _visible(char: str) -> str:
    if char.isspace():
        return " "
    return "" if unicodedata.category(char) in ("Cc", "Cf", "Cs") and char not in _JOINERS else char


class PlainTextTokenizer:
    """Tokenises pieces of text as if the tokenizer had no added tokens; remembers the pieces that repeat.

    Attributes:
        control_ids: every added token's id, special or not. No result ever holds one.
        hash: of what decides the ids: model, normalisation, pre-tokenisation, added tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
        if not isinstance(backend, Tokenizer):
            raise ConfigError(
                where="tokenizer",
                required="a fast tokenizer (one with a tokenizer.json)",
                received=type(tokenizer).__name__,
            )
        added = sorted((token_id, token.content) for token_id, token in backend.get_added_tokens_decoder().items())
        self.control_ids = {content: token_id for token_id, content in added}
        self._tokenizer = Tokenizer(backend.model)
        for part in ("normalizer", "pre_tokenizer"):
            if getattr(backend, part) is not None:
                setattr(self._tokenizer, part, getattr(backend, part))
        self.hash = sha256_json([added, hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()])
        # The model may hold such a token's text in its own vocabulary too (SmolLM2's does), so results are masked.
        self._is_control = np.zeros(1 + max((*self.control_ids.values(), *backend.get_vocab().values())), dtype=bool)
        self._is_control[list(self.control_ids.values())] = True
        self._cache: dict[str, bytes] = {}

    def encode(self, pieces: Sequence[str]) -> list[bytes]:
        """Token ids of each piece as the bytes of an int32 array: cheap to keep, to join and to count."""
        cache = self._cache
        found = [cache.get(piece) for piece in pieces]
        fresh = self._encode_fresh(dict.fromkeys(p for p, ids in zip(pieces, found, strict=True) if ids is None))
        return [fresh[piece] if ids is None else ids for piece, ids in zip(pieces, found, strict=True)]

    def _encode_fresh(self, pieces: dict[str, None]) -> dict[str, bytes]:
        if not pieces:
            return {}
        encodings = self._tokenizer.encode_batch_fast(list(pieces), add_special_tokens=False)
        fresh = {piece: self._ids(encoding.ids) for piece, encoding in zip(pieces, encodings, strict=True)}
        if len(self._cache) + len(fresh) > _CACHED_PIECES:
            self._cache = {}  # another thread may be reading the old one, so it is replaced, not emptied
        keep = ((piece, ids) for piece, ids in fresh.items() if len(piece) <= _CACHED_CHARS)
        self._cache.update(islice(keep, _CACHED_PIECES))
        return fresh

    def _ids(self, ids: list[int]) -> bytes:
        array = np.array(ids, dtype=np.int32)
        return array[~self._is_control[array]].tobytes()
