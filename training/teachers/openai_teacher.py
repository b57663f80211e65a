"""A teacher behind an OpenAI-compatible server: asynchronous, within its rate limits, and patient."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import httpx

from rgalign.errors import ConfigError, TeacherError
from rgalign.prompt import TEMPLATES, PromptTemplate
from rgalign.schema import FeatureSchema
from rgalign.training.teachers.chat_prompt import chat_messages
from rgalign.training.teachers.openai_call import TryAgain, call
from rgalign.training.teachers.openai_config import OpenAIConfig
from rgalign.training.teachers.rate_limit import RateLimit
from rgalign.training.teachers.teacher import Answer, Context

REASON_CHARS = 200  # of a failure, in errors and files
CHARS_PER_TOKEN = 3.0  # for the rate limit's guess before the server has counted


class OpenAITeacher:
    """One model of one server.

    Args:
        schema: bound to the catalogue.
        include_pii: whether features marked ``pii`` may leave this machine.

    Raises:
        ConfigError: no such template, or the key's variable is not set.
    """

    knows_titles = False

    def __init__(self, config: OpenAIConfig, schema: FeatureSchema, *, include_pii: bool = False) -> None:
        self.name = config.name
        self.config = config
        self.where = f"teacher {config.name!r} ({config.model} at {config.base_url})"
        self._schema, self._include_pii = schema, include_pii
        self._template = _template(config)
        self._key = config.api_key()
        # The address is part of it: the same name is another model elsewhere.
        self.identity: Mapping[str, Any] = {
            "kind": "openai",
            "base_url": config.base_url,
            "model": config.model,
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
            "extra": config.extra,
        }

    def reads(self, context: Context) -> str:
        messages = chat_messages(context.session, self._schema, self._template, include_pii=self._include_pii)
        return json.dumps(messages, ensure_ascii=False)

    def generate(self, contexts: Iterable[Context]) -> Iterator[tuple[int, Answer]]:
        """As :meth:`Teacher.generate`; when an error ends the run, calls in flight are finished and given first."""
        loop = asyncio.new_event_loop()
        client = self._client()
        limit = RateLimit(self.config.requests_per_minute, self.config.tokens_per_minute)
        waiting = enumerate(contexts)
        flying: dict[asyncio.Task[Answer], int] = {}
        end: TeacherError | None = None
        failures = 0
        try:
            while True:
                while end is None and len(flying) < self.config.concurrency and (asked := next(waiting, None)):
                    flying[loop.create_task(self._ask(client, limit, asked[1]))] = asked[0]
                if not flying:
                    break
                done, _ = loop.run_until_complete(asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED))
                for task in done:
                    place = flying.pop(task)
                    if (error := task.exception()) is not None:
                        if not isinstance(error, TeacherError):
                            raise error
                        end = end or error
                        continue
                    answer = task.result()
                    failures = failures + 1 if answer.failure else 0
                    if failures >= self.config.max_failures and end is None:
                        received = f"none in {failures} calls in a row, the last: {answer.failure}"
                        end = TeacherError(where=self.where, required="answers", received=received)
                    yield place, answer
            if end is not None:
                raise end
        finally:
            for task in flying:
                task.cancel()
            if flying:
                loop.run_until_complete(asyncio.wait(flying))
            loop.run_until_complete(client.aclose())
            loop.close()

    def _client(self) -> httpx.AsyncClient:
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        return httpx.AsyncClient(
            base_url=self.config.base_url.rstrip("/") + "/", headers=headers, timeout=self.config.timeout_s
        )

    async def _ask(self, client: httpx.AsyncClient, limit: RateLimit, context: Context) -> Answer:
        """One context, as often as it takes."""
        config = self.config
        prompt = self.reads(context)
        body = {"model": config.model, "messages": json.loads(prompt), config.max_tokens_key: config.max_tokens}
        if config.temperature is not None:
            body["temperature"] = config.temperature
        expected = len(prompt) / CHARS_PER_TOKEN + config.max_tokens
        attempt = 0
        while True:
            attempt += 1
            await limit.acquire(expected)
            try:
                outcome = await call(client, body | config.extra, config.timeout_s, self.where)
            except TeacherError as error:
                raise self._without_key(error) from None
            if isinstance(outcome, Answer):
                limit.correct(expected, outcome.prompt_tokens + outcome.completion_tokens or expected)
                return self._priced(outcome, attempt)
            self._check_retry_after(outcome)
            if attempt == config.max_attempts:
                return self._given_up(outcome, attempt)
            wait = outcome.after_s if outcome.after_s is not None else self._backoff(attempt)
            if outcome.limited:
                limit.pause(wait)  # the others are limited too
            else:
                await asyncio.sleep(wait)

    def _priced(self, answer: Answer, attempts: int) -> Answer:
        config = self.config
        cost = answer.prompt_tokens * config.prompt_price + answer.completion_tokens * config.completion_price
        return replace(answer, failure=self._shown(answer.failure), attempts=attempts, cost=cost / 1e6)

    def _backoff(self, attempt: int) -> float:
        """Doubling, with jitter, so that calls which failed together do not come back together."""
        longest: float = min(self.config.max_backoff_s, self.config.backoff_s * 2 ** (attempt - 1))
        return longest * random.uniform(0.5, 1.0)

    def _check_retry_after(self, outcome: TryAgain) -> None:
        if outcome.after_s is not None and outcome.after_s > self.config.max_retry_after_s:
            required = f"a server that can be asked again within {self.config.max_retry_after_s:g} s"
            received = f"{self._shown(outcome.reason)} (come back in {outcome.after_s:.0f} s)"
            raise TeacherError(where=self.where, required=required, received=received)

    def _given_up(self, outcome: TryAgain, attempts: int) -> Answer:
        reason = self._shown(outcome.reason)
        if outcome.unreachable or outcome.limited:
            required = "a server that answers" if outcome.unreachable else "calls within the server's limits"
            received = f"{reason}, {attempts} times"
            raise TeacherError(where=self.where, required=required, received=received)
        return Answer(failure=reason, attempts=attempts)

    def _shown(self, text: str) -> str:
        """The beginning of a server's words, without the key: a server may repeat it."""
        return (text if self._key is None else text.replace(self._key, "[key]"))[:REASON_CHARS]

    def _without_key(self, error: TeacherError) -> TeacherError:
        return TeacherError(where=error.where, required=error.required, received=self._shown(error.received))


def _template(config: OpenAIConfig) -> PromptTemplate:
    if isinstance(config.template, PromptTemplate):
        return config.template
    if config.template not in TEMPLATES:
        where = f"teacher {config.name!r}, template"
        raise ConfigError(where=where, required=f"one of {', '.join(TEMPLATES)}", received=repr(config.template))
    return TEMPLATES[config.template]
