"""Prompts of the paper's form for the engine's benchmark: constant prefix | 60 to 150 slot tokens | constant suffix.

The words round the slots are the templates' own; the slots are made up, of the length that is asked for, and differ
from their first value on, so that prompts share little but the constant prefix, which is what other engines can reuse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rgalign.intents import IntentCatalog
from rgalign.prompt import PromptEncoder
from rgalign.reasoner.prefix_tree import TokenIds, prefix_trees
from rgalign.schema import CategoricalFeature, FeatureSchema

SLOT_TOKENS = (60, 150)
_GENDERS = ("Female", "Male", "Unknown")
_STATUS = ("TO_PAY", "TO_SHIP", "TO_RECEIVE", "COMPLETED", "CANCELLED", "RETURN_REQUESTED")
_PAGES = ("Home", "Order Details", "Refund Details", "Voucher", "Wallet", "Parcel Tracking", "Seller Chat", "Cart")
_ACTIONS = ("viewed", "searched", "asked about", "cancelled", "returned", "paid for", "rated", "shared")
_THINGS = (
    "phone case",
    "running shoes",
    "rice cooker",
    "baby wipes",
    "desk lamp",
    "sunscreen",
    "backpack",
    "earphones",
)


@dataclass(frozen=True)
class Workload:
    """Prompts of one template.

    prefix_ids: what all begin with; token_ids: int32 slots and suffix of each.
    """

    template: str
    prefix_ids: tuple[int, ...]
    token_ids: tuple[TokenIds, ...]

    @property
    def prefix_length(self) -> int:
        return len(self.prefix_ids)

    def whole(self, ids: TokenIds) -> TokenIds:
        """The prompt with its prefix."""
        return np.concatenate([np.array(self.prefix_ids, np.int32), ids])

    def batches(self, size: int) -> list[list[TokenIds]]:
        """The prompts, ``size`` at a time; what is left over is not used."""
        return [list(self.token_ids[at : at + size]) for at in range(0, len(self.token_ids) - size + 1, size)]


def workload(tokenizer: Any, template: str, count: int, seed: int = 0) -> Workload:
    """``count`` prompts whose slots have every length in ``SLOT_TOKENS`` about equally often, in no order."""
    page = CategoricalFeature(name="page", dimension="context", vocabulary="pages", verbalize="Page: {value}")
    schema = FeatureSchema(name="engine_bench", features=(page,), vocabularies={"pages": {"home": "Home"}})
    encoder = PromptEncoder(tokenizer, schema, IntentCatalog(("a",), ("a",), ("",)), template=template)
    rng = np.random.default_rng(seed)
    lengths = rng.permutation(np.linspace(*SLOT_TOKENS, count).round().astype(int))
    suffix = np.array(encoder.suffix_ids, np.int32)
    slots = encoder.encode_texts([slot_text(rng) for _ in range(count)])
    ids = tuple(np.concatenate([slot[:length], suffix]) for slot, length in zip(slots, lengths, strict=True))
    return Workload(template, tuple(encoder.prefix_ids), ids)


def slot_text(rng: np.random.Generator) -> str:
    """Longer than any prompt's slots; the time comes first, so that prompts part early."""

    def any_of(values: tuple[str, ...]) -> str:
        return values[int(rng.integers(len(values)))]

    hour, minute, age = (int(rng.integers(limit)) for limit in (24, 60, 50))
    parts = [
        f"{hour:02d}:{minute:02d} Entry Time",
        f"Entry Page: {any_of(_PAGES)}",
        f"User Gender: {any_of(_GENDERS)}",
        f"Age: {18 + age}",
        f"Order Status: {any_of(_STATUS)}",
    ]
    parts += [f"{any_of(_ACTIONS)} {any_of(_THINGS)} {int(rng.integers(1, 60))} minutes ago" for _ in range(30)]
    return ", ".join(parts)


def computed_tokens(prompts: list[TokenIds], max_tokens: int) -> int:
    """Tokens that are left of a batch once equal beginnings are computed once."""
    return sum(len(tree.token_ids) for tree in prefix_trees(prompts, max_tokens))
