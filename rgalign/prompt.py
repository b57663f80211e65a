"""Context to prompt to token ids: constant prefix | user slots | constant suffix (paper section 3.2).

    ids = prefix_ids + tokens("User Gender: Female, Order Status: TO_RECEIVE, ...") + suffix_ids

Prefix and suffix are tokenised once, so a reasoner can keep the prefix's keys and values. User-derived text passes
through ``plain_text``: no feature can produce a control token, add a line or move the last token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rgalign.chat_format import CHAT_FORMATS, TEMPLATES, ChatFormat, PromptTemplate, detect_chat_format
from rgalign.errors import ConfigError
from rgalign.files import sha256_json
from rgalign.intents import IntentCatalog
from rgalign.plain_text import PlainTextTokenizer, clean
from rgalign.schema import FeatureSchema, Slot

__all__ = [
    "CHAT_FORMATS",
    "TEMPLATES",
    "ChatFormat",
    "EncodedPrompt",
    "PromptEncoder",
    "PromptTemplate",
    "detect_chat_format",
]

T = TypeVar("T")

ENCODING = 1  # part of every hash: raise it when cleaning, joining or truncation changes
_ID_BYTES = np.dtype(np.int32).itemsize


@dataclass(frozen=True)
class EncodedPrompt:
    """What the reasoner reads of one session: ``slot_ids`` [T] int32 without prefix and suffix, and its slots."""

    slot_ids: NDArray[np.int32]
    slots: list[Slot]


class PromptEncoder:
    """Renders and tokenises sessions. Serving and training use this one class, so they cannot drift.

    Args:
        tokenizer: a fast transformers tokenizer, or a ``tokenizers.Tokenizer``.
        template: a name in TEMPLATES, or a template of the user's own.
        chat_format: a name in CHAT_FORMATS; None detects it.
        max_tokens: the longest prompt, prefix and suffix included.
        include_pii: also verbalise features marked ``pii``.

    Raises:
        ConfigError: unknown name, missing control token, or no room for slots.
    """

    def __init__(
        self,
        tokenizer: Any,
        schema: FeatureSchema,
        catalog: IntentCatalog,
        *,
        template: str | PromptTemplate = "paper",
        chat_format: str | None = None,
        max_tokens: int = 512,
        include_pii: bool = False,
    ) -> None:
        self.template = _named(TEMPLATES, "template", template) if isinstance(template, str) else template
        named = None if chat_format is None else _named(CHAT_FORMATS, "chat_format", chat_format)
        self.chat_format = named or detect_chat_format(tokenizer)
        self.schema = schema.bind(catalog)
        spoken = tuple(feature for feature in schema.features if feature.verbalize is not None)
        self._spoken = self.schema.model_copy(update={"features": spoken})  # most features are for the tower only
        self.max_tokens = max_tokens
        self.include_pii = include_pii
        self._plain = PlainTextTokenizer(tokenizer)
        chat, words = self.chat_format, self.template
        opening = (*self._control(chat.opening), *self._text(words.system))
        self.prefix_ids = (*opening, *self._control(chat.middle), *self._text(words.before))
        self.suffix_ids = (*self._text(words.after), *self._control(chat.closing))
        self._prefix, self._suffix = np.array(self.prefix_ids, np.int32), np.array(self.suffix_ids, np.int32)
        fixed = len(self.prefix_ids) + len(self.suffix_ids)
        self._budget = max_tokens - fixed
        if self._budget < 1:
            required = f"more than {fixed}, which template {words.name!r} takes by itself"
            raise ConfigError(where="max_tokens", required=required, received=str(max_tokens))
        self.hash = sha256_json(
            {
                "encoding": ENCODING,
                "template": words.model_dump(),
                "chat_format": [chat.opening, chat.middle, chat.closing, chat.control],
                "schema": schema.hash,
                "catalog": catalog.hash,
                "tokenizer": self._plain.hash,
                "max_tokens": max_tokens,
                "include_pii": include_pii,
            }
        )

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids that occur in prefix and suffix only."""
        return frozenset(self._plain.control_ids.values())

    def encode(self, session: Mapping[str, Any]) -> EncodedPrompt:
        """One session (column name -> raw value) as token ids, with the slots that were kept."""
        slots = self._fitted(self._slots(session))
        return EncodedPrompt(_array(self._plain.encode(pieces(slots))), slots)

    def encode_many(self, sessions: Sequence[Mapping[str, Any]]) -> list[NDArray[np.int32]]:
        """``encode(session).slot_ids`` of each session, with one call to the tokenizer for all."""
        slots = [self._slots(session) for session in sessions]
        split = [pieces(each) for each in slots]
        encoded = iter(self._plain.encode([piece for each in split for piece in each]))
        arrays = []
        for each, parts in zip(slots, split, strict=True):
            ids = _array([next(encoded) for _ in parts])
            fits = len(ids) <= self._budget
            arrays.append(ids if fits else _array(self._plain.encode(pieces(self._fitted(each)))))
        return arrays

    def encode_texts(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Token ids of texts that stand in the slots' place, cleaned as values are; no control token comes of them."""
        return [_array([ids]) for ids in self._plain.encode([clean(text) for text in texts])]

    def full_ids(self, slot_ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """The whole prompt, [P + T + S] int32."""
        return np.concatenate((self._prefix, slot_ids, self._suffix), dtype=np.int32)

    def text(self, session: Mapping[str, Any]) -> str:
        """The whole prompt as text, for people to read."""
        chat, words = self.chat_format, self.template
        slots = "".join(pieces(self.encode(session).slots))
        return chat.opening + words.system + chat.middle + words.before + slots + words.after + chat.closing

    def _slots(self, session: Mapping[str, Any]) -> list[Slot]:
        slots = self._spoken.slots(session, include_pii=self.include_pii)
        # An item is a token at least: what cannot fit is not even looked at, so a history may be of any length.
        return [_clean(slot) for slot in shortened(slots, self._budget)]

    def _count(self, slots: Sequence[Slot]) -> int:
        return sum(map(len, self._plain.encode(pieces(slots)))) // _ID_BYTES

    def _fitted(self, slots: list[Slot]) -> list[Slot]:
        """The slots within the budget: oldest history goes first, then whole slots from the end.

        The longest history gives first, so all end up near one length L; L is found by bisection.
        """
        if self._count(slots) <= self._budget:
            return slots
        bare = [slot for slot in shortened(slots, 0) if self._count([slot]) <= self._budget]
        names = {slot.name for slot in bare}
        slots = [slot for slot in slots if slot.name in names]
        while self._count(bare) > self._budget:
            bare, slots = bare[:-1], slots[:-1]
        low, high = 0, self._budget + 1  # shortened(slots, low) fits
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._count(shortened(slots, middle)) <= self._budget else (low, middle)
        for keep in range(len(slots), -1, -1):  # one item more, for as many of the first slots as fit
            mixed = [*shortened(slots[:keep], low + 1), *shortened(slots[keep:], low)]
            if self._count(mixed) <= self._budget:
                return mixed
        raise AssertionError("shortened(slots, low) fits")

    def _text(self, text: str) -> Iterator[int]:
        return iter(_array(self._plain.encode([text])).tolist())

    def _control(self, text: str) -> Iterator[int]:
        known = self._plain.control_ids
        for part in self.chat_format.parts(text):
            if part not in self.chat_format.control:
                yield from self._text(part)
            elif part in known:
                yield known[part]
            else:
                required = f"a tokenizer with the control token {part}"
                received = f"one with {len(known)} added tokens without it"
                raise ConfigError(where=f"chat_format {self.chat_format.name!r}", required=required, received=received)


def pieces(slots: Iterable[Slot]) -> list[str]:
    """``", ".join(slot.text for slot in slots)`` cut before spaces, where a byte-level BPE cuts by itself.

    So the pieces' token ids, put together, are those of the whole text, and pieces repeat between sessions: one for
    a plain slot, one for a history's label and one for each of its items.
    """
    cut: list[str] = []
    for slot in slots:
        if cut:
            cut[-1] += ","
        space = " " if cut else ""
        if not slot.items:
            cut.append(space + slot.text)
            continue
        label, gap, opening = slot.head.rpartition(" ")
        if gap:
            cut.append(space + label)
            space = gap
        items = (*slot.items, "...") if slot.elided else slot.items
        cut.append(f"{space}{opening}{items[0]}")
        for item in items[1:]:
            cut[-1] += ","
            cut.append(" " + item)
        cut[-1] += slot.tail
    return cut


def shortened(slots: Iterable[Slot], length: int) -> list[Slot]:
    """The slots with at most ``length`` items each: as many ``drop_oldest`` as it takes."""
    return [
        replace(slot, items=slot.items[:length], elided=True) if len(slot.items) > length else slot for slot in slots
    ]


def _clean(slot: Slot) -> Slot:
    head, items, tail = clean(slot.head), tuple(map(clean, slot.items)), clean(slot.tail)
    if (head, items, tail) == (slot.head, slot.items, slot.tail):
        return slot
    return replace(slot, head=head, items=items, tail=tail)


def _array(parts: Sequence[bytes]) -> NDArray[np.int32]:
    return np.frombuffer(bytearray().join(parts), dtype=np.int32)  # a bytearray, so that the array is writable


def _named(known: Mapping[str, T], where: str, name: str) -> T:
    if name not in known:
        raise ConfigError(where=where, required=f"one of {', '.join(known)}", received=repr(name))
    return known[name]
