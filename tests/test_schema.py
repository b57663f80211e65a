"""The feature schema: Table 1 of the paper byte for byte, windows, unknown values, and schemas that contradict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rgalign.errors import SchemaError
from rgalign.intents import IntentCatalog
from rgalign.schema import FIRST, OOV, PAD, FeatureSchema, Slot, Vocabulary, duration

CATALOG = IntentCatalog(("2184", "31"), ("When will I receive...", "Speed up parcel delivery"), ("", ""))
GENDER = {"kind": "categorical", "name": "gender", "dimension": "profile", "vocabulary": "gender"}
CLICKS: dict[str, Any] = {
    "kind": "group",
    "name": "clicks",
    "dimension": "behaviour",
    "members": [
        {"kind": "categorical", "name": "intent", "vocabulary": "intents", "oov": "drop"},
        {"kind": "numerical", "name": "hours", "unit": "hours"},
    ],
    "age": "hours",
    "window_hours": 24,
    "max_length": 20,
    "shown": 1,
    "item": "'{intent}'",
    "verbalize": "Clicked Intents In 24 Hours: ({items})",
}


def schema(*features: dict[str, Any], **vocabularies: Any) -> FeatureSchema:
    names = {"gender": {1: "Male", 2: "Female"}, **vocabularies}
    return FeatureSchema.model_validate({"name": "t", "features": features, "vocabularies": names}).bind(CATALOG)


def texts(made: FeatureSchema, **session: Any) -> list[str]:
    return [slot.text for slot in made.slots(session)]


def test_table_1_of_the_paper_byte_for_byte() -> None:
    made = schema(
        {**GENDER, "verbalize": "User Gender: {value}"},
        CLICKS,
        {**GENDER, "name": "entry", "dimension": "context", "vocabulary": "entry", "verbalize": "Entry Point: {value}"},
        {
            **GENDER,
            "name": "order",
            "dimension": "context",
            "vocabulary": "order",
            "verbalize": "Current Order Status: {value}",
        },
        entry={3: "Shipping Page"},
        order={8: "TO_RECEIVE"},
    )
    assert texts(made, gender=2, intent=[2184, 31], hours=[1.0, 2.0], entry=3, order=8) == [
        "User Gender: Female",
        "Clicked Intents In 24 Hours: ('When will I receive...', ...)",
        "Entry Point: Shipping Page",
        "Current Order Status: TO_RECEIVE",
    ]


def test_steps_older_than_the_window_are_not_used() -> None:
    made = schema({**CLICKS, "shown": None})
    assert texts(made, intent=["31", "2184"], hours=[23.9, 24.1]) == [
        "Clicked Intents In 24 Hours: ('Speed up parcel delivery')"
    ]
    assert texts(made, intent=["31"], hours=[30.0]) == []


def test_unknown_values_never_show_their_raw_id() -> None:
    assert texts(schema({**GENDER, "verbalize": "G: {value}"}), gender="secret-77") == ["G: Unknown"]
    assert texts(schema({**GENDER, "oov": "drop", "verbalize": "G: {value}"}), gender="secret-77") == []
    assert texts(schema({**CLICKS, "shown": None}), intent=["secret-77", "31"], hours=[1, 2]) == [
        "Clicked Intents In 24 Hours: ('Speed up parcel delivery')"
    ]


def test_missing_and_empty() -> None:
    made = schema({**GENDER, "verbalize": "G: {value}"}, {**CLICKS, "empty": "No Clicks"})
    assert texts(made, gender=None, intent=None, hours=None) == ["No Clicks"]
    assert texts(made, intent=[], hours=[]) == ["No Clicks"]


def test_a_history_of_a_million_steps_costs_its_first_max_length() -> None:
    made = schema({**CLICKS, "window_hours": None, "age": None})
    (slot,) = made.slots({"intent": ["31"] * 10**6, "hours": [1.0] * 10**6})
    assert slot.elided
    assert len(slot.items) == 1


def test_pii_is_left_out_unless_asked_for() -> None:
    made = schema({**GENDER, "pii": True, "verbalize": "G: {value}"})
    assert texts(made, gender=1) == []
    assert [slot.text for slot in made.slots({"gender": 1}, include_pii=True)] == ["G: Male"]


def test_durations_and_numbers_read_naturally() -> None:
    assert [duration(hours) for hours in (0, 0.34, 1, 47, 24 * 7, 24 * 100, 24 * 800)] == [
        "0 minutes", "20 minutes", "1 hour", "47 hours", "7 days", "3 months", "2 years"
    ]  # fmt: skip
    number = {"kind": "numerical", "name": "n", "dimension": "context", "verbalize": "N: {value}"}
    assert texts(schema(number), n=3.0) == ["N: 3"]
    assert texts(schema(number), n=2.5) == ["N: 2.5"]
    assert texts(schema(number), n=float("nan")) == []
    assert texts(schema({**number, "unit": "days"}), n=7) == ["N: 7 days"]


def test_dropping_the_oldest_item_marks_what_is_gone() -> None:
    slot = Slot("clicks", "behaviour", "Clicks: (", ("new", "old"), ")")
    assert slot.drop_oldest().text == "Clicks: (new, ...)"


def test_codes_keep_zero_for_missing_and_one_for_unknown() -> None:
    vocabulary = Vocabulary({"1": "Male", "2": "Female"})
    assert [vocabulary.code(raw) for raw in (None, "9", 1, "2")] == [PAD, OOV, FIRST, FIRST + 1]
    assert vocabulary.size == 4
    assert vocabulary.hash != Vocabulary({"2": "Female", "1": "Male"}).hash


def test_a_template_cannot_reach_into_objects() -> None:
    made = schema({**GENDER, "verbalize": "G: {value} {value.__class__}"})
    assert texts(made, gender=1) == ["G: Male {value.__class__}"]


def test_save_and_load_keep_everything_and_the_hash(tmp_path: Path) -> None:
    wide = {str(number): f"street {number}" for number in range(100)}
    made = schema(
        {**GENDER, "verbalize": "G: {value}"}, {**GENDER, "name": "street", "vocabulary": "street"}, street=wide
    )
    made.save(tmp_path / "schema.yaml")
    assert (tmp_path / "vocabularies" / "street.json").is_file()
    loaded = FeatureSchema.load(tmp_path / "schema.yaml").bind(CATALOG)
    assert loaded == made
    assert loaded.hash == made.hash
    assert FeatureSchema.load(tmp_path / "schema.yaml").hash == made.hash  # the catalogue has its own hash


NUMERICAL = "{kind: numerical, name: a, dimension: context}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("features: []", "at least 1 item"),
        ("features: [{kind: categorical, name: a, dimension: context, vocabulary: nope}]", "no vocabulary 'nope'"),
        ("features: [{kind: sequence, name: a, dimension: context, vocabulary: intents}]", "max_length missing"),
        ("features: [{kind: numerical, name: a, dimension: here}]", "'profile', 'behaviour' or 'context'"),
        ("features: [{kind: numerical, name: a, dimension: context, verbalise: x}]", "did you mean 'verbalize'"),
        ("features: [{kind: numerical, name: a, dimension: context, verbalize: '{v}'}]", "unknown placeholder"),
        (f"features: [{NUMERICAL}, {NUMERICAL}]", "named twice"),
        ("vocabularies: {street: ../../etc/passwd}", "a vocabulary file inside it"),
        ("[1, 2]", "a mapping"),
        ("a: [", "valid YAML"),
    ],
)
def test_schemas_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "schema.yaml"
    file.write_text(text if text.startswith(("[", "a: [")) else f"name: t\n{text}\n")
    with pytest.raises(SchemaError, match=message):
        FeatureSchema.load(file)
