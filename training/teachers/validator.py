"""Is an answer a usable user question? One sentence, length, language, nothing personal; the first fault is named.

Reasons never repeat what was found: they are written to files that people share.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any, Literal

from pydantic import Field

from rgalign.config import Config
from rgalign.schema import Feature, FeatureSchema, numerical_text
from rgalign.training.teachers.teacher import Context

MIN_COPIED_CHARS = 4  # a shorter personal value is found in too much text by chance
LETTER_SHARE = 0.9

_QUOTES = "\"'`“”‘’«»*_ \t\n"
_LEAD = re.compile(r"^(the )?(user('s)? )?(possible |likely )?question( is)?\s*:\s*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<!\b[A-Z])(?<!\bSt)(?<!\bNo)(?<!\bDr)[.?!]+[\"'”’)]*\s+(?=\S)|[。？！]+(?=.)")
_CONTROL = re.compile(r"<\|[^|<>]*\|>|</?think>|<s>|</s>|\[/?INST\]")
_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_PERSONAL = {
    "an e-mail address": re.compile(r"[^@\s]+@[^@\s]+\.[A-Za-z]{2,}"),
    "an IP address": re.compile(r"\b\d{1,3}(\.\d{1,3}){3}\b"),
    "a phone, account or order number": re.compile(r"\d(?:[ ().\-]?\d){5,}"),
}
_SCRIPTS = {"en": "LATIN", "es": "LATIN", "pt": "LATIN", "id": "LATIN", "ms": "LATIN", "vi": "LATIN", "tl": "LATIN"}
_SCRIPTS |= {"th": "THAI", "zh": "CJK", "ru": "CYRILLIC", "ko": "HANGUL", "ar": "ARABIC", "hi": "DEVANAGARI"}
# One of these is in nearly every English question, and hardly in one of another Latin-script language.
_ENGLISH = frozenset(
    re.findall(
        r"\w+",
        """the a an i my me is are do does did can could would will how what when where why who which to of for with
        about has have it in on if you your this that please should need want help""",
    )
)

Language = Literal["any", "en", "es", "pt", "id", "ms", "vi", "tl", "th", "zh", "ru", "ko", "ar", "hi"]


class ValidatorConfig(Config):
    """Limits of a usable question.

    Args:
        min_words, max_words: the prompt asks for 10 to 20; scripts without spaces count two characters a word.
        language: its script is checked, and English also by its function words.
    """

    min_words: int = Field(default=4, ge=1)
    max_words: int = Field(default=30, ge=1)
    language: Language = "en"


def cleaned(text: str) -> str:
    """The question without what small models put round it: quotes, "The user question is:", line breaks at the ends."""
    text = text.strip(_QUOTES)
    return _LEAD.sub("", text).strip(_QUOTES)


def fault(text: str, context: Context, schema: FeatureSchema, config: ValidatorConfig) -> str | None:
    """Why the cleaned answer cannot be used, or None.

    Args:
        schema: bound to the catalogue; its ``pii`` features are what must not be copied.
    """
    if not text:
        return "empty"
    if _CONTROL.search(text):
        return "a control token"
    if "\n" in text or _SENTENCE_END.search(text):
        return "several sentences"
    words = num_words(text)
    if words < config.min_words:
        return f"fewer than {config.min_words} words"
    if words > config.max_words:
        return f"more than {config.max_words} words"
    if not _in_language(text, config.language):
        return f"not in language {config.language}"
    return _personal(text, context, schema)


def num_words(text: str) -> int:
    unspaced = len(_UNSPACED.findall(text))
    return len(_WORD.findall(_UNSPACED.sub(" ", text))) + (unspaced + 1) // 2


def _in_language(text: str, language: Language) -> bool:
    if language == "any":
        return True
    letters = [char for char in text if char.isalpha()]
    script = _SCRIPTS[language]
    own = sum(unicodedata.name(char, "").startswith(script) for char in letters)
    if not letters or own < LETTER_SHARE * len(letters):
        return False
    return language != "en" or not _ENGLISH.isdisjoint(word.lower() for word in _WORD.findall(text))


def _personal(text: str, context: Context, schema: FeatureSchema) -> str | None:
    for what, pattern in _PERSONAL.items():
        if pattern.search(text):
            return what
    lowered = text.lower()
    for feature in schema.features:
        if feature.pii and any(value in lowered for value in _values(context, feature, schema)):
            return f"copies personal feature {feature.name}"
    return None


def _values(context: Context, feature: Feature, schema: FeatureSchema) -> list[str]:
    """A feature's values as they stand in the log, and as a prompt says them."""
    found: list[Any] = []
    for part in feature.members if feature.kind == "group" else (feature,):
        value = context.session.get(part.name)
        values = value if isinstance(value, list) else [value]
        found += values
        if part.kind == "numerical":
            found += [numerical_text(each, None) for each in values]  # as 12 where the log has 12.0
        else:
            found += [schema.vocabulary(part.vocabulary).string(each) for each in values]
    texts = (str(value).strip().lower() for value in found if value is not None)
    return [text for text in texts if len(text) >= MIN_COPIED_CHARS]
