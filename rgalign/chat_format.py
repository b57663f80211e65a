"""The words round a user's data: prompt templates, and the chat formats of the model families.

    prompt = format.opening system format.middle before | slots | after format.closing
             '------------- constant prefix -----------'           '- constant suffix -'

Constants, not Jinja: nothing that serving loads may be a program. Tests compare each format with the text that the
tokenizer's own ``apply_chat_template`` renders.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from rgalign.config import Config
from rgalign.errors import ConfigError


class PromptTemplate(Config):
    """The static text before and after the slots. ``after`` is not empty: the last token is always ours."""

    name: str
    system: str
    before: str
    after: str = Field(min_length=1)


_SYSTEM = (
    "You are a helpful AI assistant. You first think about the reasoning process in the mind and then provide the "
    "user with the answer."
)
_TASK = (
    "You are an intelligent assistant supporting an e-commerce Chatbot. When the user enters the Chatbot via "
    'different entry points, proactively suggest one "hot question" (common intent) that the user is most likely to '
    "ask right now, based on the user related information."
)
_DATA = "Below is User Context Information, User Profile, Order Status and User Historical Behaviour information:"
_REQUEST = (
    "generate one question that users may encounter. Please describe in one sentence the question that the user may "
    "want to ask."
)
_REQUIREMENTS = "Requirements: Keep the question between 10-20 words."
_QUESTION = "The user question is:"

# Paper section 3.2, verbatim. Its "<Output>" stands for what the model writes and is not part of the prompt.
PAPER = PromptTemplate(
    name="paper",
    system=_SYSTEM,
    before=f"{_TASK}\n\n{_DATA}\n",
    after=f"\n\nBased on the above information, {_REQUEST}\n\n{_REQUIREMENTS}\n{_QUESTION}",
)
# The same words with all that can be static moved before the data, where a prefix cache holds it.
PREFIX_CACHED = PromptTemplate(
    name="prefix_cached",
    system=_SYSTEM,
    before=f"{_TASK}\n\nBased on the information below, {_REQUEST}\n\n{_REQUIREMENTS}\n\n{_DATA}\n",
    after=f"\n{_QUESTION}",
)
TEMPLATES = {template.name: template for template in (PAPER, PREFIX_CACHED)}


@dataclass(frozen=True)
class ChatFormat:
    """The turn markers of one model family. ``control`` names the tokens in them that are single ids."""

    name: str
    opening: str
    middle: str
    closing: str
    control: tuple[str, ...]

    def parts(self, text: str) -> list[str]:
        """``text`` (opening, middle or closing) cut at its control tokens, which are kept."""
        if not self.control:
            return [text]
        cut = re.split("(" + "|".join(map(re.escape, self.control)) + ")", text)
        return [part for part in cut if part]


_CHATML = ("<|im_start|>", "<|im_end|>")
_LLAMA = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")

# ChatML: SmolLM2, and Qwen2.5 when a system prompt is given.
SMOLLM2 = ChatFormat(
    name="smollm2",
    opening="<|im_start|>system\n",
    middle="<|im_end|>\n<|im_start|>user\n",
    closing="<|im_end|>\n<|im_start|>assistant\n",
    control=_CHATML,
)
# enable_thinking=False: the template itself writes the empty thought, so the last token is past it.
QWEN3 = ChatFormat(
    name="qwen3",
    opening=SMOLLM2.opening,
    middle=SMOLLM2.middle,
    closing=SMOLLM2.closing + "<think>\n\n</think>\n\n",
    control=(*_CHATML, "<think>", "</think>"),
)
# Llama 3. The date that 3.1 and later write into the system turn is left out: it would change the prefix every day.
LLAMA3 = ChatFormat(
    name="llama3",
    opening="<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n",
    middle="<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
    closing="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    control=_LLAMA,
)
# For a base model without turns; never detected, only asked for.
PLAIN = ChatFormat(name="plain", opening="", middle="\n\n", closing="", control=())

CHAT_FORMATS = {chat.name: chat for chat in (QWEN3, SMOLLM2, LLAMA3, PLAIN)}


def detect_chat_format(tokenizer: Any) -> ChatFormat:
    """The format whose control tokens the tokenizer knows.

    Args:
        tokenizer: a fast transformers tokenizer, or a ``tokenizers.Tokenizer``.

    Raises:
        ConfigError: it knows none of them.
    """
    known = _added(tokenizer)
    template = getattr(tokenizer, "chat_template", None)
    # Qwen3-2507-Instruct has the <think> tokens but a template without the switch: it never writes an empty thought.
    thinks = not isinstance(template, str) or "enable_thinking" in template
    for chat in (LLAMA3, QWEN3, SMOLLM2):
        if known.keys() >= set(chat.control) and (chat is not QWEN3 or thinks):
            return chat
    raise ConfigError(
        where="chat_format",
        required=f"a tokenizer with the control tokens of one of {', '.join(CHAT_FORMATS)}, or chat_format: plain",
        received=f"one with {len(known)} added tokens: {', '.join(sorted(known)[:5]) or 'none'}",
    )


def turn_ends(tokenizer: Any) -> list[int]:
    """Ids with which an answer may end: the known formats' ends of turn that the tokenizer has, its end of sequence."""
    known = _added(tokenizer)
    ends = (chat.parts(chat.closing)[0] for chat in CHAT_FORMATS.values() if chat.control)
    found = {known[end] for end in ends if end in known}
    return sorted(found | ({tokenizer.eos_token_id} - {None}))


def _added(tokenizer: Any) -> dict[str, int]:
    """The tokenizer's added tokens and their ids."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    return {token.content: token_id for token_id, token in backend.get_added_tokens_decoder().items()}
