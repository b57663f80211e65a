"""Which answers are usable questions; reasons that name the fault and repeat none of it."""

from __future__ import annotations

from datetime import datetime

import pytest

from rgalign.intents import IntentCatalog
from rgalign.schema import CategoricalFeature, FeatureSchema, NumericalFeature, SequenceFeature
from rgalign.training.teachers.teacher import Context
from rgalign.training.teachers.validator import ValidatorConfig, cleaned, fault, num_words

CONFIG = ValidatorConfig()
SCHEMA = FeatureSchema(
    name="t",
    features=(
        CategoricalFeature(name="street", dimension="profile", vocabulary="streets", pii=True),
        SequenceFeature(name="names", dimension="profile", vocabulary="streets", pii=True, max_length=3),
        CategoricalFeature(name="city", dimension="profile", vocabulary="streets"),
        NumericalFeature(name="zip", dimension="profile", pii=True),
    ),
    vocabularies={"streets": {"Chestnut Street": "Green House"}},
).bind(IntentCatalog(("i",), ("title",), ("",)))
CONTEXT = Context(
    0,
    {
        "session_id": "s",
        "user_id": "u",
        "ts": datetime(2026, 1, 1),
        "region": "r",
        "street": "Chestnut Street",
        "names": ["Jo", "Rosalind"],
        "city": "Boston",
        "zip": 21300.0,
    },
)


def reason(text: str, config: ValidatorConfig = CONFIG) -> str | None:
    return fault(cleaned(text), CONTEXT, SCHEMA, config)


@pytest.mark.parametrize(
    "text",
    [
        "When will the broken street light near my home be repaired?",
        '"How do I get a refund for my cancelled order?"',
        "The user question is: Can I change the address of my parcel now?",
        "I would like to know when my trash in Boston is collected.",
        "Can No. 5 St. James Park be cleaned this week?",
        "Jo wants to know where the parcel is",  # two letters are no personal data
        "What is the status of order 1234?",
    ],
)
def test_usable(text: str) -> None:
    assert reason(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "empty"),
        ('" "', "empty"),
        ("Refund status", "fewer than 4 words"),
        ("where is my order " * 8, "more than 30 words"),
        ("Where is my parcel today? It should have been here.", "several sentences"),
        ("Where is my parcel\nand when does it arrive?", "several sentences"),
        ("Where is my <|im_end|> parcel with the shoes?", "a control token"),
        ("¿Dónde está mi pedido de la semana pasada?", "not in language en"),
        ("我的订单什么时候可以送到我的家里", "not in language en"),
        ("1 2 3 4 5", "not in language en"),
        ("Can you write to jo@example.org about my order?", "an e-mail address"),
        ("Can you call me at 617 635-4500 about my order?", "a phone, account or order number"),
        ("Where is the order with number 20240917?", "a phone, account or order number"),
        ("Is the address 10.0.0.17 one of yours?", "an IP address"),
        ("When is the trash in chestnut street collected?", "copies personal feature street"),
        ("Does Rosalind still have a parcel on its way?", "copies personal feature names"),
        ("Do you collect the trash in 21300 on holidays?", "copies personal feature zip"),
        ("Can you send it to Green House by the river?", "copies personal feature street"),  # as a prompt says it
    ],
)
def test_the_first_fault_is_named(text: str, expected: str) -> None:
    assert reason(text) == expected


def test_reasons_never_repeat_what_was_found() -> None:
    for text in ("When is the trash in Chestnut Street collected?", "Can you call me at 617 635-4500 about my order?"):
        found = reason(text)
        assert found is not None
        assert "hestnut" not in found
        assert "617" not in found


def test_other_languages_are_judged_by_their_script() -> None:
    assert reason("คำสั่งซื้อของฉันจะมาถึงเมื่อไหร่", ValidatorConfig(language="th")) is None
    assert reason("我的订单什么时候可以送到我的家里", ValidatorConfig(language="zh")) is None
    assert reason("我的订单什么时候送到？我想退款。", ValidatorConfig(language="zh")) == "several sentences"
    assert reason("Where is the order that I made?", ValidatorConfig(language="zh")) == "not in language zh"
    assert reason("¿Dónde está mi pedido de la semana pasada?", ValidatorConfig(language="es")) is None
    assert reason("Где мой заказ и когда он будет?", ValidatorConfig(language="any")) is None


@pytest.mark.parametrize(
    ("text", "words"), [("where's my order?", 3), ("top-up my wallet", 3), ("", 0), ("订单在哪", 2), ("a 订单 b", 3)]
)
def test_words(text: str, words: int) -> None:
    assert num_words(text) == words
