"""Configuration of a teacher behind an OpenAI-compatible server."""

from __future__ import annotations

import os
from typing import Any, Literal

from pydantic import Field

from rgalign.chat_format import PromptTemplate
from rgalign.config import Config
from rgalign.errors import ConfigError
from rgalign.training.teachers.teacher import Name


class OpenAIConfig(Config):
    """A chat-completions endpoint: GPT-5, Gemini's and Qwen's compatible ones, vLLM, ``transformers serve``.

    Args:
        base_url: what stands before ``/chat/completions``, such as ``https://api.openai.com/v1``.
        api_key_env: the environment variable that holds the key; None sends none. The key is never written anywhere.
        max_tokens_key: newer OpenAI models want ``max_completion_tokens``.
        temperature: None leaves it to the server (some models take no other).
        extra: further keys of the request body, such as ``reasoning_effort``.
        concurrency: calls in flight.
        timeout_s: of one call, from sending to the last byte.
        max_attempts: of one call; rate limits, timeouts, 5xx and malformed answers are tried again after
            ``backoff_s`` * 2^n (at most ``max_backoff_s``), or when the server says.
        max_retry_after_s: a server that says to come back later than this ends the run: its quota is spent.
        max_failures: so many contexts without an answer in a row end the run.
        prompt_price, completion_price: per million tokens, for the cost log and the budget.
    """

    kind: Literal["openai"]
    name: Name
    base_url: str = Field(pattern=r"^https?://")
    model: str
    api_key_env: str | None = "OPENAI_API_KEY"
    template: str | PromptTemplate = "paper"
    max_tokens: int = Field(default=64, ge=1)
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    temperature: float | None = Field(default=0.0, ge=0)
    extra: dict[str, Any] = Field(default_factory=dict)
    concurrency: int = Field(default=8, ge=1)
    requests_per_minute: float | None = Field(default=None, gt=0)
    tokens_per_minute: float | None = Field(default=None, gt=0)
    timeout_s: float = Field(default=60.0, gt=0)
    max_attempts: int = Field(default=5, ge=1)
    backoff_s: float = Field(default=1.0, ge=0)
    max_backoff_s: float = Field(default=60.0, ge=0)
    max_retry_after_s: float = Field(default=300.0, ge=0)
    max_failures: int = Field(default=10, ge=1)
    prompt_price: float = Field(default=0.0, ge=0)
    completion_price: float = Field(default=0.0, ge=0)

    def api_key(self) -> str | None:
        """Read when it is asked for, and kept nowhere.

        Raises:
            ConfigError: the variable is not set.
        """
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            required = f"the key in the environment variable {self.api_key_env} (or api_key_env: null)"
            raise ConfigError(where=f"teacher {self.name!r}", required=required, received="no such variable")
        return key
