"""A Hugging Face causal LM on this machine as teacher; the reasoner itself is one of them.

It reads the reasoner's prompt (:mod:`rgalign.prompt`) and continues it, in padded batches. Greedy by default; with a
temperature each prompt draws from a generator of its own, so an answer depends on no other prompt of the batch:

    argmax(logits / temperature + g),  g ~ Gumbel(0, 1)         is a sample of softmax(logits / temperature)
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from rgalign.chat_format import PromptTemplate
from rgalign.config import Config
from rgalign.data.dataset import Dataset
from rgalign.models.text_encoder import length_batches
from rgalign.prompt import PromptEncoder
from rgalign.reasoner.continuation import continued, padding_of
from rgalign.reasoner.prefix_tree import TokenIds
from rgalign.reasoner.pretrained import load_causal_lm, model_fingerprint
from rgalign.training.embed import EmbedConfig
from rgalign.training.latents import prompt_digest
from rgalign.training.teachers.teacher import Answer, Context, Name


class Decoding(Config):
    """How a local model writes.

    Args:
        stop: an answer ends with the first of these; they are kept, blanks at the end are not.
        batch_tokens: padded prompt tokens decoded together; fewer need less memory.
    """

    max_new_tokens: int = Field(default=40, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    seed: int = 0
    stop: tuple[str, ...] = ("\n", "?")
    batch_tokens: int = Field(default=16384, ge=1)


class LocalConfig(Decoding):
    """Any model that the ``hf`` reasoner loads."""

    kind: Literal["local"]
    name: Name
    model: str
    template: str | PromptTemplate = "paper"
    chat_format: str | None = None
    max_tokens: int = 512
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"


class ReasonerConfig(Decoding):
    """The reasoner that made the latent queries: model, template and limits are theirs, and ``dtype`` if it is None."""

    kind: Literal["reasoner"]
    name: Name = "reasoner"
    dtype: Literal["float32", "bfloat16"] | None = None


class LocalTeacher:
    """A loaded model with the encoder of its prompts.

    Args:
        fingerprint: of the model's files.
    """

    knows_titles = False

    def __init__(
        self, name: str, model: Any, tokenizer: Any, encoder: PromptEncoder, decoding: Decoding, fingerprint: str
    ) -> None:
        self.name = name
        self._model, self._tokenizer, self._encoder, self._decoding = model, tokenizer, encoder, decoding
        self.identity: Mapping[str, Any] = {
            "kind": "local",
            "model": fingerprint,
            "dtype": str(model.dtype).removeprefix("torch."),
            "max_new_tokens": decoding.max_new_tokens,
            "temperature": decoding.temperature,
            "seed": decoding.seed if decoding.temperature else 0,
            "stop": list(decoding.stop),
        }

    @classmethod
    def load(cls, config: LocalConfig, dataset: Dataset, *, include_pii: bool = False) -> LocalTeacher:
        """Raises ModelNotFoundError, or ConfigError for a model whose chat format is not known."""
        model, tokenizer = load_causal_lm(config.model, getattr(torch, config.dtype))
        encoder = PromptEncoder(
            tokenizer,
            dataset.schema,
            dataset.catalog,
            template=config.template,
            chat_format=config.chat_format,
            max_tokens=config.max_tokens,
            include_pii=include_pii,
        )
        fingerprint = model_fingerprint(config.model)
        return cls(config.name, model.to(config.device), tokenizer, encoder, config, fingerprint)

    @classmethod
    def reasoner(cls, config: ReasonerConfig, embedding: EmbedConfig, dataset: Dataset) -> LocalTeacher:
        """The model, template and limits that ``embedding`` made latent queries with."""
        alike = ("model", "template", "chat_format", "max_tokens", "dtype", "device")
        values = {name: getattr(embedding, name) for name in alike}
        decoding = config.model_dump(exclude={"kind"}, exclude_none=True)
        local = LocalConfig(kind="local", **{**values, **decoding})
        return cls.load(local, dataset, include_pii=embedding.include_pii)

    def reads(self, context: Context) -> str:
        return self._encoder.text(context.session)

    def generate(self, contexts: Iterable[Context]) -> Iterator[tuple[int, Answer]]:
        slots = self._encoder.encode_many([dict(context.session) for context in contexts])
        prompts = [self._encoder.full_ids(ids) for ids in slots]
        for rows in length_batches([len(prompt) for prompt in prompts], self._decoding.batch_tokens):
            began = time.perf_counter()
            texts, lengths = self._decode([prompts[row] for row in rows])
            seconds = (time.perf_counter() - began) / len(rows)
            for row, text, length in zip(rows, texts, lengths, strict=True):
                failure = "" if text else "empty answer"
                yield row, Answer(text, failure, len(prompts[row]), length, seconds)

    def _decode(self, prompts: list[TokenIds]) -> tuple[list[str], list[int]]:
        """Texts and their token counts."""
        tokenizer, decoding, prefix = self._tokenizer, self._decoding, self._encoder.prefix_ids
        written = continued(
            self._model,
            tokenizer,
            [prompt[len(prefix) :] for prompt in prompts],
            prefix,
            max_new_tokens=decoding.max_new_tokens,
            logits_processor=[GumbelNoise(prompts, decoding)] if decoding.temperature else [],
            stop_strings=list(decoding.stop) or None,
        )
        texts: list[str] = tokenizer.batch_decode(written, skip_special_tokens=True)
        lengths = (written != padding_of(tokenizer)).sum(dim=1).tolist()
        return [text.strip() for text in texts], cast(list[int], lengths)


class GumbelNoise:
    """A logits processor: logits / temperature plus each prompt's own noise."""

    def __init__(self, prompts: Sequence[TokenIds], decoding: Decoding) -> None:
        seeds = (int.from_bytes(prompt_digest(np.append(prompt, np.int32(decoding.seed)))[:7]) for prompt in prompts)
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = decoding.temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = [torch.empty(scores.shape[1]).exponential_(generator=each) for each in self._generators]
        return scores / self._temperature - torch.stack(rows).log().to(scores)
