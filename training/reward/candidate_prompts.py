"""Where a candidate query stands in the reasoner's prompt, so that its latent query is of the space the ranker knows.

    slots       prefix | candidate | suffix             in the user slots' place: the last token stays ours, and a text
                                                        has one vector for all sessions
    beside      prefix | slots, candidate | suffix      behind the user slots: the session stays in the vector
    appended    prefix | slots | suffix | candidate     after the whole prompt, as the reasoner would go on

The last two have a vector for each session; what its candidates' prompts begin with is computed once.

Which one the ranker can read is measured, see gate.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np

from rgalign.data.dataset import Dataset
from rgalign.errors import DataError
from rgalign.plain_text import PlainTextTokenizer, clean
from rgalign.prompt import PromptEncoder
from rgalign.reasoner.prefix_tree import TokenIds, common_length
from rgalign.training.teachers.teacher import session_contexts

Placement = Literal["slots", "beside", "appended"]
PLACEMENTS: tuple[Placement, ...] = ("slots", "beside", "appended")  # the cheap one is tried first


class CandidatePrompts:
    """Prompts below the constant prefix.

    Args:
        tokenizer: the reasoner's.
        encoder: of the sessions' prompts, as they were embedded.
    """

    def __init__(self, tokenizer: object, encoder: PromptEncoder, placement: Placement) -> None:
        self.placement = placement
        self.encoder = encoder
        self._plain = PlainTextTokenizer(tokenizer)
        self._suffix = np.asarray(encoder.suffix_ids, np.int32)

    def build(self, texts: Sequence[str], slot_ids: Sequence[TokenIds]) -> list[TokenIds]:
        """One prompt a text.

        Args:
            slot_ids: of each text's session (:meth:`slot_ids`); not read for ``slots``.

        Raises:
            DataError: a text without a token.
        """
        encoded = [np.frombuffer(ids, np.int32) for ids in self._plain.encode([clean(text) for text in texts])]
        for text, ids in zip(texts, encoded, strict=True):
            if not len(ids):
                raise DataError(where="candidate query", required="a text with tokens", received=repr(text))
        if self.placement == "slots":
            return [np.concatenate([ids, self._suffix]) for ids in encoded]
        prompts = zip(slot_ids, encoded, strict=True)
        if self.placement == "beside":
            comma = np.frombuffer(self._plain.encode([", "])[0], np.int32)
            return [np.concatenate([slots, comma, ids, self._suffix]) for slots, ids in prompts]
        return [np.concatenate([slots, self._suffix, ids]) for slots, ids in prompts]

    def slot_ids(
        self, dataset: Dataset, split: str, rows: np.ndarray[tuple[int], np.dtype[np.int64]]
    ) -> list[TokenIds]:
        """User slots of some sessions; empty arrays where the placement does not read them."""
        if self.placement == "slots":
            return [np.empty(0, np.int32)] * len(rows)
        return self.encoder.encode_many([dict(each.session) for each in session_contexts(dataset, split, rows)])


def computed_tokens(prompts: Sequence[TokenIds]) -> int:
    """Tokens left to compute when equal beginnings are computed once (prefix_tree.py), the constant prefix aside."""
    ordered = sorted(prompts, key=lambda ids: ids.astype(">u4").tobytes())
    shared = sum(common_length(left, right) for left, right in pairwise(ordered))
    return sum(map(len, ordered)) - shared
