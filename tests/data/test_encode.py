"""The session encoder: codes, transforms, ragged histories, labels; and what it does with bad input."""

import time

import numpy as np
import pyarrow as pa
import pytest
import torch

from rgalign.data.encode import NumericStats, SessionEncoder
from rgalign.data.ragged import Lookup, lists, numbers
from rgalign.errors import DataError
from rgalign.intents import IntentCatalog
from rgalign.schema import FeatureSchema

STRINGS = pa.list_(pa.string())
SCHEMA = FeatureSchema.model_validate(
    {
        "name": "small",
        "vocabularies": {"status": {"3": "paid", "8": "shipped"}},
        "features": [
            {"kind": "categorical", "name": "status", "dimension": "context", "vocabulary": "status"},
            {"kind": "categorical", "name": "known", "dimension": "context", "vocabulary": "status", "oov": "drop"},
            {"kind": "numerical", "name": "days", "dimension": "context", "transform": "log1p"},
            {"kind": "numerical", "name": "age", "dimension": "profile", "minimum": 0, "maximum": 10},
            {"kind": "sequence", "name": "seen", "dimension": "behaviour", "vocabulary": "intents", "max_length": 3},
            {
                "kind": "group",
                "name": "past",
                "dimension": "behaviour",
                "members": [
                    {"kind": "categorical", "name": "past_intents", "vocabulary": "intents"},
                    {"kind": "numerical", "name": "past_hours"},
                    {"kind": "numerical", "name": "past_price", "transform": "identity"},
                ],
                "age": "past_hours",
                "window_hours": 100,
                "max_length": 3,
            },
        ],
    }
)
CATALOG = IntentCatalog(("a", "b", "c", "d"), ("A", "B", "C", "D"), ("",) * 4)
ROW = {
    "status": 3,
    "known": 8,
    "days": 1.0,
    "age": 5.0,
    "seen": ["a"],
    "past_intents": ["b"],
    "past_hours": [1.0],
    "past_price": [2.0],
    "clicked": ["c"],
    "candidates": [],
}
TYPES = {
    "status": pa.int64(),
    "known": pa.int64(),
    "seen": STRINGS,
    "past_intents": STRINGS,
    "past_hours": pa.list_(pa.float64()),
    "past_price": pa.list_(pa.float64()),
    "clicked": STRINGS,
    "candidates": STRINGS,
}
STATS = NumericStats({"days": (0.0, 1.0), "age": (0.0, 1.0), "past_price": (0.0, 1.0)})


def table(*changes: dict[str, object]) -> pa.Table:
    rows = [ROW | change for change in changes]
    return pa.table({name: pa.array([row[name] for row in rows], TYPES.get(name)) for name in ROW})


def encoder(stats: NumericStats = STATS) -> SessionEncoder:
    return SessionEncoder(SCHEMA, CATALOG, stats)


def test_categorical_codes_and_their_policies() -> None:
    encode = encoder()
    batch = encode.encode(
        table({}, {"status": 8, "known": 3}, {"status": None, "known": None}, {"status": 5, "known": 5})
    )
    assert batch.categorical.tolist() == [[2, 3], [3, 2], [0, 0], [1, 0]]
    assert encode.counters == {"status unknown": 1, "known unknown": 1}


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["3", "8", None, "9"]),
        pa.array([3, 8, None, 9], pa.int32()),
        pa.array(["3", "8", None, "9"]).dictionary_encode(),
        pa.chunked_array([["3"], ["8", None, "9"]]).combine_chunks(),
        pa.array(["x", "3", "8", None, "9"]).slice(1),
    ],
    ids=["string", "integer", "dictionary", "chunks", "slice"],
)
def test_raw_ids_of_any_type_are_compared_as_strings(values: pa.Array) -> None:
    lookup = Lookup(["3", "8"], first=2, missing=0, unknown=1)
    assert lookup(values).tolist() == [2, 3, 0, 1]
    assert lookup(pa.nulls(2)).tolist() == [0, 0]
    assert lookup(values.slice(0, 0)).tolist() == []


def test_numbers_are_clipped_transformed_and_standardised() -> None:
    stats = NumericStats({"days": (1.0, 2.0), "age": (5.0, 5.0), "past_price": (0.0, 1.0)})
    batch = encoder(stats).encode(table({"days": 3.0, "age": 99.0}, {"days": -3.0, "age": -7.0}, {"days": None}))
    expected = [[(np.log(4) - 1) / 2, 1.0], [(-np.log(4) - 1) / 2, -1.0], [0.0, 0.0]]
    np.testing.assert_allclose(batch.numerical.numpy(), expected, atol=1e-6)
    assert batch.missing.tolist() == [[False, False], [False, False], [True, False]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_missing(bad: float) -> None:
    batch = encoder().encode(table({"age": bad}, {}))
    assert batch.missing.tolist() == [[False, True], [False, False]]
    assert batch.numerical.isfinite().all()


def test_a_huge_number_does_not_swamp_the_others() -> None:
    assert encoder().encode(table({"days": 1e300})).numerical[0, 0] == 10


def test_sequences_newest_first_cut_and_padded() -> None:
    encode = encoder()
    batch = encode.encode(
        table({"seen": ["d", "a", "b", "c"]}, {"seen": []}, {"seen": None}, {"seen": ["zz", None, "b"]})
    )
    assert batch.sequences["seen"].tolist() == [[5, 2, 3], [0, 0, 0], [0, 0, 0], [3, 0, 0]]
    assert encode.counters["seen unknown"] == 1


def test_groups_stay_coupled_inside_their_window() -> None:
    batch = encoder().encode(
        table(
            {"past_intents": ["a", "zz", "c"], "past_hours": [1.0, 99.0, 101.0], "past_price": [7.0, None, 9.0]},
            {"past_intents": ["d"], "past_hours": [None], "past_price": [1.0]},
            {"past_intents": ["d", "a"], "past_hours": [-2.0, 5.0], "past_price": [1.0, 2.0]},
        )
    )
    assert batch.group_lengths["past"].tolist() == [2, 0, 2]
    assert batch.groups["past"]["past_intents"].tolist() == [[2, 1], [0, 0], [5, 2]]
    assert batch.groups["past"]["past_hours"].tolist() == [[1, 99], [0, 0], [0, 5]]
    price = batch.groups["past"]["past_price"]
    assert price[0, 0] == 7
    assert price[0, 1].isnan()  # missing inside the history, not padding


def test_members_of_unequal_length_are_refused() -> None:
    with pytest.raises(
        DataError, match="group past: required past_intents and past_hours as long; received 2 and 1 in row 1"
    ):
        encoder().encode(table({}, {"past_intents": ["a", "b"]}))


def test_a_million_steps_are_cut() -> None:
    long = 1_000_000
    batch = encoder().encode(table({"seen": ["b"] * long}, {"seen": ["a"]}))
    assert batch.sequences["seen"].tolist() == [[3, 3, 3], [2, 0, 0]]


def test_labels() -> None:
    encode = encoder()
    batch = encode.encode(table({"clicked": ["c", "a", "c"]}, {"clicked": ["zz", "d"]}, {"clicked": []}))
    assert batch.candidates is None
    assert batch.clicked.tolist() == [[2, 0], [3, -1], [-1, -1]]
    assert encode.counters == {"clicked unknown": 1}


def test_slates_and_whole_catalogues_in_one_batch() -> None:
    encode = encoder()
    batch = encode.encode(table({"candidates": ["d", "zz", "b", "d"], "clicked": ["a"]}, {}, {"candidates": ["zz"]}))
    assert batch.candidates.tolist() == [[3, 1, -1, -1], [0, 1, 2, 3], [-1, -1, -1, -1]]
    assert encode.counters["candidates unknown"] == 2
    assert encode.counters["clicked outside candidates"] == 2
    # An unknown id of one row is not mistaken for a known one of the row before.
    two = encoder().encode(table({"candidates": ["a", "b", "c"]}, {"candidates": ["zz", "a"]}))
    assert two.candidates.tolist() == [[0, 1, 2], [0, -1, -1]]


def test_without_label_columns() -> None:
    batch = encoder().encode(table({}, {}).drop_columns(["clicked", "candidates"]))
    assert batch.candidates is None
    assert batch.clicked.tolist() == [[-1], [-1]]


def test_a_missing_column_and_wrong_latents_are_refused() -> None:
    with pytest.raises(DataError, match="required columns age; received no such column"):
        encoder().encode(table({}).drop_columns(["age"]))
    with pytest.raises(DataError, match="latent queries: required 1 rows; received 2"):
        encoder().encode(table({}), np.zeros((2, 3), np.float32))
    with pytest.raises(DataError, match="statistics of age: required a mean"):
        encoder(NumericStats({"days": (0.0, 1.0)})).encode(table({}))


def test_no_rows() -> None:
    batch = encoder().encode(table({}).slice(0, 0))
    assert len(batch) == 0
    assert batch.sequences["seen"].shape == (0, 1)


def test_statistics_are_those_of_the_transformed_values_batch_by_batch() -> None:
    rng = np.random.default_rng(0)
    rows = [{"days": rng.exponential(5), "past_price": [rng.normal(3, 2)]} for _ in range(50)]
    rows += [{"days": None}, {"days": float("inf")}, {"past_hours": [1e6], "past_price": [1e9]}]  # outside the window
    whole = table(*rows)
    stats = NumericStats.fit(whole, SCHEMA)
    days = np.log1p([row["days"] for row in rows[:50]] + [1.0])
    assert stats.moments["days"] == pytest.approx((days.mean(), days.std()))
    assert stats.moments["past_price"][0] == pytest.approx(
        np.mean([row["past_price"][0] for row in rows[:50]] + [2.0] * 2)
    )
    assert stats.moments["age"] == (5.0, 1.0)  # constant
    assert "past_hours" not in stats.moments  # ages have buckets
    by_batch = NumericStats.fit((whole.slice(start, 20) for start in range(0, 53, 20)), SCHEMA)
    for name, moments in stats.moments.items():
        assert by_batch.moments[name] == pytest.approx(moments)
    again = NumericStats.from_json(stats.to_json())
    assert (again, again.hash) == (stats, stats.hash)


def test_encoding_does_not_depend_on_chunks_or_slices() -> None:
    rows = [{"seen": ["a", "b"][: n % 3], "clicked": ["abcd"[n % 4]], "status": [3, 8][n % 2]} for n in range(12)]
    whole = table(*rows)
    chunked = pa.concat_tables([whole.slice(0, 5), whole.slice(5, 1), whole.slice(6)])
    expected, received, tail = (encoder().encode(t) for t in (whole, chunked, chunked.slice(4)))
    assert torch.equal(received.sequences["seen"], expected.sequences["seen"])
    assert torch.equal(received.categorical, expected.categorical)
    assert torch.equal(tail.clicked, expected.clicked[4:])
    assert torch.equal(tail.groups["past"]["past_hours"], expected.groups["past"]["past_hours"][4:])


def test_other_list_types() -> None:
    for kind in (pa.large_list(pa.string()), pa.list_(pa.string(), 2)):
        ragged = lists(pa.chunked_array([pa.array([["a", "b"], ["c", "d"]], kind)]).slice(1), max_length=1)
        assert ragged.values.to_pylist() == ["c"]
    assert lists(pa.chunked_array([pa.nulls(3)])).lengths.tolist() == [0, 0, 0]
    assert np.isnan(numbers(pa.nulls(2))).all()


def test_select_keeps_rows_together() -> None:
    latents = np.arange(6, dtype=np.float32).reshape(3, 2)
    batch = encoder().encode(table({}, {"status": 8, "clicked": ["d"]}, {}), latents).select(torch.tensor([1]))
    assert (len(batch), batch.clicked.tolist(), batch.latent.tolist()) == (1, [[3]], [[2.0, 3.0]])
    assert batch.categorical.tolist() == [[3, 3]]
    assert batch.without_latent().latent is None
    assert batch.to("cpu").group_lengths["past"].tolist() == [1]


def test_encoding_has_no_loop_over_rows() -> None:
    """20,000 sessions a second of one core, which a loop over rows does not reach."""
    rows = table(*([{}] * 50)).take(pa.array(np.arange(80_000) % 50))
    encode = encoder()
    encode.encode(rows.slice(0, 100))
    seconds = []
    for _ in range(3):
        start = time.process_time()
        encode.encode(rows)
        seconds.append(time.process_time() - start)
    assert len(rows) / min(seconds) > 20_000
