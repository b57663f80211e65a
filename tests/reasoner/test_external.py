"""Pooling ``external``: the decoded question's vector, the same in any batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from rgalign.errors import DataError
from rgalign.reasoner.external import ExternalReasoner
from rgalign.reasoner.hf import HFReasoner
from rgalign.training.embed import EmbedConfig, load_reasoner

WORDS = 64
PREFIX = [5, 6, 7]


class LetterCounts:
    """A text's vector: its length and how often two words stand in it."""

    fingerprint = "letters"

    def encode(self, texts: Sequence[str], *, on_texts: Any = None) -> torch.Tensor:
        return torch.tensor([[float(len(text)), text.count("w1"), text.count("w2")] for text in texts])


def writer() -> HFReasoner:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        eos_token_id=3,
    )
    model = Qwen3ForCausalLM(config)
    torch.nn.init.normal_(model.lm_head.weight, std=1.0)  # so that prompts are continued differently
    words = Tokenizer(WordLevel({f"w{word}": word for word in range(WORDS)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w3")
    return HFReasoner(model.eval(), tokenizer, fingerprint="tiny")


def prompts() -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(2)
    return [rng.integers(4, WORDS, length).astype(np.int32) for length in (3, 9, 5, 9, 1)]


def test_a_batch_decodes_what_each_prompt_decodes_alone() -> None:
    reasoner = ExternalReasoner(writer(), LetterCounts(), max_new_tokens=6)
    together = reasoner.questions(prompts(), prefix_ids=PREFIX)
    assert together == [reasoner.questions([ids], prefix_ids=PREFIX)[0] for ids in prompts()]
    assert together == reasoner.questions([np.array([*PREFIX, *ids], np.int32) for ids in prompts()])
    assert len(set(together)) > 1
    torch.testing.assert_close(reasoner.embed(prompts(), prefix_ids=PREFIX), LetterCounts().encode(together))


def test_the_question_is_the_greedy_continuation() -> None:
    made = writer()
    ids = [*PREFIX, *prompts()[1].tolist()]
    expected: list[int] = []
    with torch.inference_mode():
        while len(expected) < 6 and (not expected or expected[-1] != 3):
            logits = made.model(input_ids=torch.tensor([[*ids, *expected]])).logits[0, -1]
            expected.append(int(logits.argmax()))
    question = ExternalReasoner(made, LetterCounts(), max_new_tokens=6).questions([np.array(ids, np.int32)])
    assert question == [" ".join(f"w{token}" for token in expected if token != 3)]


def test_its_provenance_differs_from_that_of_any_state() -> None:
    made = writer()
    external = ExternalReasoner(made, LetterCounts(), max_new_tokens=6)
    assert external.provenance["pooling"] == "external"
    assert external.provenance["encoder"] == "letters"
    assert external.provenance != ExternalReasoner(made, LetterCounts(), max_new_tokens=7).provenance
    assert external.hidden_size == 3


def test_a_prompt_without_tokens_is_refused() -> None:
    reasoner = ExternalReasoner(writer(), LetterCounts())
    with pytest.raises(DataError, match="prompt 1"):
        reasoner.questions([np.array([4], np.int32), np.array([], np.int32)])
    with pytest.raises(DataError, match="at least one prompt"):
        reasoner.embed([])


def test_the_configuration_chooses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = writer()
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(
        "rgalign.training.embed.SentenceEncoder.from_pretrained", lambda ref: {"minilm": LetterCounts()}[ref]
    )
    reasoner = load_reasoner(EmbedConfig(model=str(tmp_path), pooling="external", max_new_tokens=6))
    assert isinstance(reasoner, ExternalReasoner)
    expected = ExternalReasoner(made, LetterCounts(), max_new_tokens=6)
    assert reasoner.questions(prompts()) == expected.questions(prompts())
