"""Slices of sessions."""

import numpy as np
import pyarrow as pa
import pytest

from rgalign.metrics.slices import column_slices, frequency_slices, history_slices, is_category, training_counts


def test_columns_of_any_category_type_are_sliced_by_value():
    for values in (["b", "a", None, "a"], [2, 1, None, 1]):
        first, second, missing = column_slices(
            "region", pa.chunked_array([values[:2], values[2:]], pa.array(values).type)
        )
        assert first.mask.tolist() == [False, True, False, True]
        assert second.mask.tolist() == [True, False, False, False]
        assert (missing.name, missing.mask.tolist()) == ("(missing)", [False, False, True, False])
    assert [part.name for part in column_slices("x", pa.array([True, False]))] == ["false", "true"]


@pytest.mark.parametrize("values", [["a"] * 5, [str(n) for n in range(13)]])
def test_constant_and_many_valued_columns_are_not(values):
    assert column_slices("region", pa.array(values)) == []


def test_histories():
    column = pa.chunked_array([[["a"], [], None]], pa.list_(pa.string()))
    some, none = history_slices({"orders": column})
    assert (some.name, some.mask.tolist()) == ("orders: some", [True, False, False])
    assert (none.name, none.mask.tolist()) == ("orders: none", [False, True, True])


def test_frequency_takes_the_rarest_relevant_intent():
    # Shares 0.6, 0.25, 0.15, 0: the first two are the least that hold 0.8.
    counts = np.array([25, 60, 0, 15])
    relevant = np.array([[1, -1], [0, 1], [1, 3], [3, 2], [-1, -1]])
    head, tail, cold = frequency_slices(relevant, counts)
    assert head.mask.tolist() == [True, True, False, False, False]
    assert tail.mask.tolist() == [False, False, True, False, False]
    assert cold.mask.tolist() == [False, False, False, True, False]


def test_training_counts():
    assert training_counts(np.array([[0, 2], [2, -1]]), 4).tolist() == [1, 0, 2, 0]


def test_categories():
    kinds = [pa.string(), pa.int32(), pa.bool_(), pa.dictionary(pa.int8(), pa.string())]
    assert all(is_category(kind) for kind in kinds)
    assert not any(is_category(kind) for kind in (pa.float32(), pa.list_(pa.string()), pa.timestamp("us")))
