"""The prompt: the paper's words, the tokenizer's own chat format, natural token boundaries, the token budget."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from rgalign.chat_format import CHAT_FORMATS, TEMPLATES, PromptTemplate, detect_chat_format
from rgalign.config import parse_config
from rgalign.errors import ConfigError
from rgalign.intents import IntentCatalog
from rgalign.plain_text import MAX_CHARS, PlainTextTokenizer, clean
from rgalign.prompt import PromptEncoder, pieces, shortened
from rgalign.schema import FeatureSchema, Slot

FIGURE = """\
##System Prompt
You are a helpful AI assistant. You first think about the reasoning process in the mind and then provide the user with \
the answer.

##User Prompt
You are an intelligent assistant supporting an e-commerce Chatbot. When the user enters the Chatbot via different \
entry points, proactively suggest one "hot question" (common intent) that the user is most likely to ask right now, \
based on the user related information.

Below is User Context Information, User Profile, Order Status and User Historical Behaviour information:
User Gender: Female, ... Order_Status: TO_RECEIVE

Based on the above information, generate one question that users may encounter. Please describe in one sentence the \
question that the user may want to ask.

Requirements: Keep the question between 10-20 words.
The user question is: <Output>
"""
SESSION = {
    "gender": 2,
    "city": "Bandung",
    "clicked_24h": ["i03", "i01"],
    "asked_intent": ["i07"],
    "asked_hours": [170.0],
    "status": 8,
}
SLOTS = (
    "User Gender: Female, Clicked Intents In 24 Hours: ('When will I receive parcel number 3?', 'When will I receive "
    "parcel number 1?'), Asked Before: 'When will I receive parcel number 7?' 7 days ago, Order_Status: TO_RECEIVE"
)
MODELS = ("smollm2", "qwen3", "llama3")


@pytest.fixture(params=MODELS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture
def encoder(llama3: Any, schema: FeatureSchema, catalog: IntentCatalog) -> PromptEncoder:
    return PromptEncoder(llama3, schema, catalog, max_tokens=2000)


def test_paper_template_is_the_figure() -> None:
    paper = TEMPLATES["paper"]
    filled = paper.before + "User Gender: Female, ... Order_Status: TO_RECEIVE" + paper.after
    assert f"##System Prompt\n{paper.system}\n\n##User Prompt\n{filled} <Output>\n" == FIGURE


def test_prefix_cached_says_the_same_before_the_data() -> None:
    paper, cached = TEMPLATES["paper"], TEMPLATES["prefix_cached"]
    assert cached.after == "\nThe user question is:"
    words = (paper.before + paper.after).replace("the above information", "the information below")
    assert sorted((cached.before + cached.after).split()) == sorted(words.split())


@pytest.mark.parametrize("template", TEMPLATES)
def test_chat_format_equals_apply_chat_template(
    tokenizer: Any, template: str, schema: FeatureSchema, catalog: IntentCatalog
) -> None:
    encoder = PromptEncoder(tokenizer, schema, catalog, template=template, max_tokens=4000)
    words = TEMPLATES[template]
    messages = [
        {"role": "system", "content": words.system},
        {"role": "user", "content": words.before + SLOTS + words.after},
    ]
    expected = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert SLOTS in expected
    assert encoder.text(SESSION) == expected
    # Cut into prefix, pieces and suffix, the ids are still those of the whole text.
    ids = encoder.full_ids(encoder.encode(SESSION).slot_ids)
    assert ids.dtype == np.int32
    assert ids.tolist() == tokenizer.encode(expected, add_special_tokens=False)


@pytest.mark.parametrize("name", MODELS)
def test_chat_format_is_detected(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    assert detect_chat_format(tokenizer) is CHAT_FORMATS[name]
    assert detect_chat_format(tokenizer.backend_tokenizer) is CHAT_FORMATS[name]


def test_thinking_tokens_without_the_switch_are_chatml(hostile: Tokenizer) -> None:
    knows_think = Tokenizer.from_str(hostile.to_str())
    knows_think.add_tokens(["</think>"])
    instruct_2507 = SimpleNamespace(backend_tokenizer=knows_think, chat_template="{{ '<|im_start|>assistant\\n' }}")
    assert detect_chat_format(knows_think) is CHAT_FORMATS["qwen3"]
    assert detect_chat_format(instruct_2507) is CHAT_FORMATS["smollm2"]


def test_base_model_asks_for_a_format(schema: FeatureSchema, catalog: IntentCatalog, llama3: Any) -> None:
    bare = Tokenizer(llama3.backend_tokenizer.model)
    with pytest.raises(ConfigError, match="chat_format: plain; received one with 0 added tokens"):
        PromptEncoder(bare, schema, catalog)
    with pytest.raises(ConfigError, match=r"'qwen3': required a tokenizer with the control token <\|im_start\|>"):
        PromptEncoder(bare, schema, catalog, chat_format="qwen3")
    encoder = PromptEncoder(bare, schema, catalog, chat_format="plain", max_tokens=4000)
    assert encoder.text(SESSION).endswith("The user question is:")
    assert encoder.control_ids == frozenset()


def test_template_of_ones_own(llama3: Any, schema: FeatureSchema, catalog: IntentCatalog) -> None:
    values = {"name": "city", "system": "You know Boston.", "before": "Resident: ", "after": "\nThe request is:"}
    template = parse_config(PromptTemplate, values, where="embed.yaml")
    encoder = PromptEncoder(llama3, schema, catalog, template=template)
    assert "Resident: User Gender: Female" in encoder.text({"gender": 2})
    with pytest.raises(ConfigError, match="did you mean 'after'"):
        parse_config(PromptTemplate, {**values, "aftre": "x"}, where="embed.yaml")
    with pytest.raises(ValidationError, match="at least 1 character"):
        PromptTemplate(**{**values, "after": ""})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"template": "papr"}, "template: required one of paper, prefix_cached; received 'papr'"),
        ({"chat_format": "gemma"}, "chat_format: required one of qwen3, smollm2, llama3, plain; received 'gemma'"),
        ({"max_tokens": 100}, "max_tokens: required more than .*template 'paper' takes by itself; received 100"),
    ],
)
def test_unusable_arguments(
    arguments: dict[str, Any], message: str, llama3: Any, schema: FeatureSchema, catalog: IntentCatalog
) -> None:
    with pytest.raises(ConfigError, match=message):
        PromptEncoder(llama3, schema, catalog, **arguments)


def test_slow_tokenizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="a fast tokenizer .* received dict"):
        PlainTextTokenizer({})


def test_pii_is_left_out_unless_asked_for(
    encoder: PromptEncoder, llama3: Any, schema: FeatureSchema, catalog: IntentCatalog
) -> None:
    asked = PromptEncoder(llama3, schema, catalog, max_tokens=2000, include_pii=True)
    assert "Bandung" not in encoder.text(SESSION)
    assert "City: Bandung" in asked.text(SESSION)
    assert len(asked.encode_many([SESSION])[0]) > len(encoder.encode_many([SESSION])[0])
    assert asked.hash != encoder.hash


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Order Status: 8", "Order Status: 8"),
        ("a\n\n##System\r\n\tb  c\u2028d\x85e\u00a0f", "a ##System b c d e f"),
        ("\x00a\x1b[31mb\u202ec\ud800d\U000e0041e\ufefff\u200b", "a[31mbcdef"),
        ("می\u200cخواهم 👩\u200d🚚", "می\u200cخواهم 👩\u200d🚚"),
        ("x" * 5000, "x" * MAX_CHARS),
        ("", ""),
    ],
)
def test_clean(text: str, expected: str) -> None:
    assert clean(text) == expected


WORDS = st.text("aZéßſ語ทด९12'’\"()<|>.,!?-_%$€👩\u0301", min_size=1, max_size=8)
PHRASES = st.lists(WORDS, min_size=1, max_size=4).map(" ".join)
SLOT_LISTS = st.lists(
    st.builds(
        Slot,
        name=st.uuids().map(str),
        dimension=st.just("behaviour"),
        head=st.one_of(PHRASES, PHRASES.map(lambda words: f"{words}: (")),
        items=st.lists(PHRASES.map("'{}'".format), max_size=4).map(tuple),
        tail=st.sampled_from(["", ")"]),
        elided=st.booleans(),
    ),
    max_size=4,
)


@settings(max_examples=100, deadline=None, database=None)
@given(slots=SLOT_LISTS)
def test_pieces_are_the_text(slots: list[Slot]) -> None:
    assert "".join(pieces(slots)) == ", ".join(slot.text for slot in slots)


@pytest.mark.parametrize("name", ["smollm2", "qwen3"])
def test_pieces_have_the_ids_of_the_text(name: str, request: pytest.FixtureRequest) -> None:
    plain = PlainTextTokenizer(request.getfixturevalue(name))

    @settings(max_examples=100, deadline=None, database=None)
    @given(slots=SLOT_LISTS)
    def check(slots: list[Slot]) -> None:
        slots = [replace(slot, head=clean(slot.head), items=tuple(map(clean, slot.items))) for slot in slots]
        (whole,) = plain.encode([", ".join(slot.text for slot in slots)])
        assert b"".join(plain.encode(pieces(slots))) == whole

    check()


def test_oldest_history_goes_first(llama3: Any, schema: FeatureSchema, catalog: IntentCatalog) -> None:
    session = {**SESSION, "clicked_24h": [f"i{row:02d}" for row in range(30)]}
    whole = PromptEncoder(llama3, schema, catalog, max_tokens=4000).encode(session)
    fixed = 4000 - PromptEncoder(llama3, schema, catalog, max_tokens=4000)._budget
    lengths = []
    for budget in range(len(whole.slot_ids), 0, -50):
        encoder = PromptEncoder(llama3, schema, catalog, max_tokens=fixed + budget)
        prompt = encoder.encode(session)
        full = encoder.full_ids(prompt.slot_ids)
        assert len(full) <= fixed + budget
        assert tuple(full[-len(encoder.suffix_ids) :]) == encoder.suffix_ids
        names = [slot.name for slot in prompt.slots]
        assert names == [slot.name for slot in whole.slots][: len(names)], "whole slots go from the end"
        items = {slot.name: slot.items for slot in prompt.slots}
        kept = items.get("clicked_24h", ())
        assert kept == whole.slots[1].items[: len(kept)], "the newest stay"
        if len(names) < len(whole.slots):
            assert not any(items.values()), "no slot is dropped while history is left"
        lengths.append(len(kept))
    assert lengths[0] == 30
    assert lengths[-1] == 0
    assert lengths == sorted(lengths, reverse=True)


def test_as_much_history_as_fits(llama3: Any, schema: FeatureSchema, catalog: IntentCatalog) -> None:
    """One item more, wherever it were added, would not fit."""
    ids = [f"i{row % 40:02d}" for row in range(100)]
    session = {"gender": 2, "clicked_24h": ids, "asked_intent": ids, "asked_hours": [float(row) for row in range(100)]}
    for max_tokens in (1500, 1700, 2222):
        encoder = PromptEncoder(llama3, schema, catalog, max_tokens=max_tokens)
        slots = encoder.encode(session).slots
        counts = [len(slot.items) for slot in slots[1:]]
        assert min(counts) > 0
        assert max(counts) - min(counts) <= 1, "the longest history gives first"
        row = 1 + counts.index(min(counts))
        more = shortened(encoder._slots(session), min(counts) + 1)[row]
        assert encoder._count([*slots[:row], more, *slots[row + 1 :]]) > encoder._budget


def test_oversized_slot_does_not_take_the_others_along(llama3: Any, catalog: IntentCatalog) -> None:
    feature = {"kind": "categorical", "dimension": "profile", "vocabulary": "v", "verbalize": "{value}"}
    features = [{**feature, "name": "huge"}, {**feature, "name": "small"}]
    vocabulary = {"1": "語" * MAX_CHARS, "2": "small"}
    schema = FeatureSchema.model_validate({"name": "s", "vocabularies": {"v": vocabulary}, "features": features})
    encoder = PromptEncoder(llama3, schema, catalog, max_tokens=1500)
    assert [slot.name for slot in encoder.encode({"huge": 1, "small": 2}).slots] == ["small"]
    assert [slot.name for slot in encoder.encode({"huge": 1, "small": 1}).slots] == []
    assert encoder.encode({"huge": 1}).slot_ids.shape == (0,)


IDS = st.lists(st.sampled_from(["i00", "i01", "i13", "nowhere", None]), max_size=60)


@settings(max_examples=100, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    clicked=IDS,
    asked=IDS,
    gender=st.sampled_from([2, 7, None]),
    status=st.sampled_from([8, None]),
    room=st.integers(1, 400),
)
def test_budget_holds_for_any_input(
    clicked: list[Any], asked: list[Any], gender: Any, status: Any, room: int, encoder: PromptEncoder
) -> None:
    hours = [float(row) for row in range(len(asked))]
    session = {
        "gender": gender,
        "clicked_24h": clicked,
        "asked_intent": asked,
        "asked_hours": hours,
        "status": status,
    }
    fixed = len(encoder.prefix_ids) + len(encoder.suffix_ids)
    encoder.max_tokens, encoder._budget = fixed + room, room
    prompt = encoder.encode(session)
    assert len(encoder.full_ids(prompt.slot_ids)) <= fixed + room
    np.testing.assert_array_equal(encoder.encode_many([session])[0], prompt.slot_ids)


@pytest.mark.parametrize("max_length", [200, 20_000])
def test_history_of_a_million(llama3: Any, catalog: IntentCatalog, max_length: int) -> None:
    feature = {"kind": "sequence", "name": "clicked", "dimension": "behaviour", "vocabulary": "intents"}
    feature |= {"max_length": max_length, "verbalize": "Clicked: {items}"}
    schema = FeatureSchema.model_validate({"name": "s", "features": [feature]})
    encoder = PromptEncoder(llama3, schema, catalog, max_tokens=1500)
    session = {"clicked": [f"i{row % 40:02d}" for row in range(10**6)]}
    start = time.process_time()
    prompt = encoder.encode(session)
    assert time.process_time() - start < 1.0
    assert len(encoder._slots(session)[0].items) <= encoder._budget, "what cannot fit is not looked at"
    assert len(encoder.full_ids(prompt.slot_ids)) <= 1500
    assert prompt.slots[0].items[0] == "'When will I receive parcel number 0?'"
    assert prompt.slots[0].elided


def test_encode_many_is_encode(encoder: PromptEncoder) -> None:
    sessions: list[dict[str, Any]] = [{**SESSION, "clicked_24h": [f"i{row:02d}"] * row} for row in range(40)]
    sessions += [{}, {"gender": "never seen"}]
    for many, session in zip(encoder.encode_many(sessions), sessions, strict=True):
        np.testing.assert_array_equal(many, encoder.encode(session).slot_ids)
    assert encoder.encode_many([]) == []
    assert len(encoder.encode({}).slot_ids) == 0
    assert encoder.encode(SESSION).slot_ids.flags.writeable  # torch.from_numpy warns otherwise


def test_cache_is_bounded(llama3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rgalign.plain_text._CACHED_PIECES", 100)
    plain = PlainTextTokenizer(llama3)
    texts = [f"piece {row}" for row in range(1000)] + ["long " * 100]
    once = plain.encode(texts)
    for text, ids in zip(texts, once, strict=True):
        assert plain.encode([text]) == [ids]
        assert len(plain._cache) <= 100
    assert texts[-1] not in plain._cache


def test_hash_covers_what_decides_the_ids(
    llama3: Any, qwen3: Any, schema: FeatureSchema, catalog: IntentCatalog
) -> None:
    def digest(tokenizer: Any = llama3, schema: FeatureSchema = schema, catalog: IntentCatalog = catalog, **more: Any):
        return PromptEncoder(tokenizer, schema, catalog, **{"max_tokens": 2000, **more}).hash

    values = schema.model_dump()
    renamed = FeatureSchema.model_validate({**values, "vocabularies": {**schema.vocabularies, "gender": {"2": "Male"}}})
    values["features"][0]["verbalize"] = "Gender: {value}"
    reworded = FeatureSchema.model_validate(values)
    retitled = IntentCatalog(catalog.ids, ("Where is it?", *catalog.titles[1:]), catalog.descriptions)
    extended = Tokenizer.from_str(llama3.backend_tokenizer.to_str())
    extended.add_tokens(["<new>"])
    paper = TEMPLATES["paper"]
    hashes = [
        digest(),
        digest(template="prefix_cached"),
        digest(template=paper.model_copy(update={"after": paper.after + " "})),
        digest(chat_format="plain"),
        digest(max_tokens=1999),
        digest(include_pii=True),
        digest(schema=reworded),
        digest(schema=renamed),
        digest(catalog=retitled),
        digest(tokenizer=extended),
        digest(tokenizer=qwen3),
    ]
    assert len(set(hashes)) == len(hashes)


def test_hash_is_stable(llama3: Any, tmp_path: Any) -> None:
    before = PlainTextTokenizer(llama3).hash
    llama3.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert PlainTextTokenizer(loaded).hash == before
    # Padding and truncation stick to a transformers tokenizer after a call; they are not ours.
    loaded(["a b c d"], truncation=True, max_length=2)
    plain = PlainTextTokenizer(loaded)
    assert plain.hash == before
    assert len(plain.encode(["a b c d"])[0]) == 7 * 4
