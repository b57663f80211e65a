"""A local model as teacher: greedy as transformers decodes, samples that no batch changes, refused without chat."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rgalign.data.dataset import Dataset
from rgalign.errors import ConfigError
from rgalign.training.embed import EmbedConfig
from rgalign.training.teachers.local_teacher import LocalConfig, LocalTeacher, ReasonerConfig
from rgalign.training.teachers.teacher import Answer, Context


def local(model: Path, **changes: object) -> LocalConfig:
    values = {
        "kind": "local",
        "name": "tiny",
        "model": str(model),
        "max_new_tokens": 12,
        "stop": (),
        "max_tokens": 2048,
    }
    return LocalConfig.model_validate({**values, **changes})


def texts(teacher: LocalTeacher, contexts: list[Context]) -> list[Answer]:
    found = dict(teacher.generate(contexts))
    return [found[place] for place in range(len(contexts))]


def test_a_batch_answers_as_one_by_one_and_as_transformers(
    service: Dataset, contexts: list[Context], tiny_model: Path
) -> None:
    teacher = LocalTeacher.load(local(tiny_model), service)
    together = [answer.text for answer in texts(teacher, contexts)]
    alone = [next(iter(teacher.generate([context])))[1].text for context in contexts]
    assert together == alone
    assert len(set(together)) > 1
    tokenizer = teacher._tokenizer
    ids = tokenizer(teacher.reads(contexts[0]), return_tensors="pt", add_special_tokens=False).input_ids
    with torch.inference_mode():  # the mask is given: without one, turn markers would be taken for padding
        mask = torch.ones_like(ids)
        written = teacher._model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=12)
    assert together[0] == tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_samples_differ_by_seed_and_not_by_batch(service: Dataset, contexts: list[Context], tiny_model: Path) -> None:
    def sample(seed: int, batch_tokens: int) -> list[str]:
        config = local(tiny_model, temperature=1.0, seed=seed, batch_tokens=batch_tokens)
        return [answer.text for answer in texts(LocalTeacher.load(config, service), contexts)]

    first = sample(0, 1)
    assert sample(0, 100_000) == first
    assert sample(1, 100_000) != first


def test_answers_stop_where_they_are_told(service: Dataset, contexts: list[Context], tiny_model: Path) -> None:
    free = texts(LocalTeacher.load(local(tiny_model), service), contexts[:1])[0]
    letter = next(char for char in free.text[1:-1] if char.isascii() and char.isprintable() and char != " ")
    stopped = texts(LocalTeacher.load(local(tiny_model, stop=(letter,)), service), contexts[:1])[0]
    assert stopped.text == free.text[: free.text.index(letter) + 1]
    assert stopped.completion_tokens < free.completion_tokens == 12
    assert stopped.prompt_tokens > 100


def test_the_reasoner_reads_the_prompt_its_latent_queries_were_made_of(
    service: Dataset, contexts: list[Context], tiny_model: Path
) -> None:
    embedding = EmbedConfig(model=str(tiny_model), template="prefix_cached", max_tokens=2048)
    teacher = LocalTeacher.reasoner(ReasonerConfig(kind="reasoner"), embedding, service)
    assert teacher.name == "reasoner"
    assert "Based on the information below" in teacher.reads(contexts[0])
    assert teacher.identity["model"] == LocalTeacher.load(local(tiny_model), service).identity["model"]
    assert teacher.identity["dtype"] == "float32"
    rounded = LocalTeacher.reasoner(ReasonerConfig(kind="reasoner", dtype="bfloat16"), embedding, service)
    assert rounded.identity == {**teacher.identity, "dtype": "bfloat16"}


def test_a_model_without_a_chat_format_is_refused(service: Dataset, chatless_model: Path) -> None:
    with pytest.raises(ConfigError, match="chat_format: required a tokenizer with the control tokens"):
        LocalTeacher.load(local(chatless_model), service)
    assert LocalTeacher.load(local(chatless_model, chat_format="plain"), service).name == "tiny"
