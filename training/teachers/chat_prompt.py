"""The prompt as chat messages, for servers that lay their own chat template round it.

The words are those of :mod:`rgalign.prompt`'s template; what comes from a user is cleaned and holds no turn marker.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rgalign.chat_format import PromptTemplate
from rgalign.plain_text import clean
from rgalign.schema import FeatureSchema

_MARKERS = re.compile(r"<\|[^|<>]*\|>|</?think>")

Messages = list[dict[str, str]]


def chat_messages(
    session: Mapping[str, Any], schema: FeatureSchema, template: PromptTemplate, *, include_pii: bool = False
) -> Messages:
    """System and user turn of one session; ``schema`` is bound to its catalogue."""
    slots = (clean(_MARKERS.sub("", slot.text)) for slot in schema.slots(session, include_pii=include_pii))
    user = template.before + ", ".join(slots) + template.after
    return [{"role": "system", "content": template.system}, {"role": "user", "content": user}]
