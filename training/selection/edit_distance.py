"""Word-level Levenshtein distance, as a share of the longer text: V3 and V4 ask how far a query is from the reasoner's.

Words, since a distance in characters mostly measures length.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORD = re.compile(r"\w+")


def word_edit_distance(left: str, right: str) -> float:
    """0 for the same words, 1 for nothing in common; case and punctuation do not count."""
    first, second = _WORD.findall(left.lower()), _WORD.findall(right.lower())
    longer = max(len(first), len(second))
    return levenshtein(first, second) / longer if longer else 0.0


def levenshtein(left: Sequence[str], right: Sequence[str]) -> int:
    """Fewest insertions, deletions and replacements that make ``left`` into ``right``."""
    row = list(range(len(right) + 1))
    for place, item in enumerate(left, start=1):
        diagonal, row[0] = row[0], place
        for column, other in enumerate(right, start=1):
            changed = diagonal + (item != other)
            diagonal = row[column]
            row[column] = min(changed, diagonal + 1, row[column - 1] + 1)
    return row[-1]
