"""An intent as the user's question, for teachers that need no language model: one of a few fixed phrasings.

The phrasing is chosen by the intent's id, so equal intents have equal questions and are embedded once.
"""

from __future__ import annotations

from hashlib import blake2b

from rgalign.intents import IntentCatalog

PHRASINGS = (
    "How can I get help with {title}, and what do I need to do next?",
    "I want to ask about {title}: what are the next steps for me?",
    "What should I do now to have my request about {title} taken care of?",
    "Could you please tell me how {title} works and when it will be done?",
)
ASKED = "I would like to know the answer to this: {title}?"
_QUESTION_WORDS = ("how", "what", "when", "where", "why", "who", "which", "can", "could", "do", "does", "is", "are")


def question(catalog: IntentCatalog, row: int) -> str:
    """The question of a user who came for the intent in catalogue row ``row``; its title stands in it verbatim."""
    title = " ".join(catalog.titles[row].split()).rstrip(".?! ")
    words = title.split()
    if words and words[0].lower() in _QUESTION_WORDS and len(words) > 2:
        return ASKED.format(title=title)
    digest = blake2b(catalog.ids[row].encode(), digest_size=2).digest()
    return PHRASINGS[int.from_bytes(digest) % len(PHRASINGS)].format(title=title)
