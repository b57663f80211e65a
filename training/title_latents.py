"""Latent queries of the intents' own words: each title, and as the question of a user who came for it.

A text stands where the session's slots stand, as candidate queries do (reward/candidate_prompts.py), so the vectors
are what the query tower meets when words are judged. ``loss.title_weight`` trains it to read them.
"""

from __future__ import annotations

import numpy as np

from rgalign.intents import IntentCatalog
from rgalign.prompt import PromptEncoder
from rgalign.reasoner.prefix_tree import TokenIds
from rgalign.training.teachers.phrasing import PHRASINGS

TEXTS = 1 + len(PHRASINGS)  # of each intent


def title_texts(catalog: IntentCatalog) -> list[str]:
    """[N * TEXTS] texts, those of an intent together."""
    return [text for title in catalog.titles for text in (title, *(each.format(title=title) for each in PHRASINGS))]


def title_prompts(catalog: IntentCatalog, encoder: PromptEncoder) -> list[TokenIds]:
    """Prompts of :func:`title_texts` below the constant prefix."""
    suffix = np.asarray(encoder.suffix_ids, np.int32)
    return [np.concatenate([ids, suffix]) for ids in encoder.encode_texts(title_texts(catalog))]
