"""rgalign.topk against its definition, and the promises the definition cannot show: threads, the GIL, refusals."""

import itertools
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rgalign.errors import DataError
from rgalign.topk import TopK, topk, topk_reference

INF = np.inf


def assert_same(actual: TopK, expected: TopK) -> None:
    np.testing.assert_array_equal(actual.rows, expected.rows)
    # Bits, not values: a winner keeps the sign of its zero.
    np.testing.assert_array_equal(actual.scores.view(np.uint32), expected.scores.view(np.uint32))


def matrix(*rows: list[float]) -> NDArray[np.float32]:
    return np.array(rows, np.float32)


def test_the_order_by_hand() -> None:
    scores = matrix([0.5, 2.0, 0.5, -INF, 2.0, INF], [0.0, -0.0, 0.0, -1.0, -0.0, -2.0])
    expected = [[5, 1, 4, 0], [0, 1, 2, 4]]
    assert topk_reference(scores, 4).rows.tolist() == expected
    answer = topk(scores, 4)
    assert answer.rows.tolist() == expected
    assert answer.scores[0].tolist() == [INF, 2.0, 2.0, 0.5]
    assert np.signbit(answer.scores[1]).tolist() == [False, True, False, True]


# Few distinct values make ties everywhere, at every place a winner may be displaced.
few_values = st.sampled_from([-INF, -1.5, -0.0, 0.0, 1e-38, 0.25, 0.25000003, INF])


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_equals_the_definition(data: st.DataObject) -> None:
    num_sessions = data.draw(st.integers(0, 5))
    num_intents = data.draw(st.integers(0, 200))
    values = data.draw(st.lists(few_values, min_size=num_intents, max_size=num_intents))
    order = np.random.default_rng(data.draw(st.integers(0, 99)))
    scores = np.array([order.permutation(values) for _ in range(num_sessions)], np.float32)
    scores = scores.reshape(num_sessions, num_intents)
    k = data.draw(st.integers(1, num_intents + 3))
    threads = data.draw(st.integers(1, 4))
    expected = topk_reference(scores, k)
    assert expected.rows.shape == (num_sessions, min(k, num_intents))
    assert_same(topk(scores, k, num_threads=threads), expected)

    num_candidates = data.draw(st.integers(0, 12))
    candidates = order.integers(-1, num_intents, (num_sessions, num_candidates))
    assert_same(topk(scores, k, candidates, threads), topk_reference(scores, k, candidates))


@pytest.mark.parametrize("direction", [1, -1])
def test_long_rows_whatever_order_they_come_in(direction: int) -> None:
    ramp = np.arange(10_000, dtype=np.float32)[None, ::direction]
    noise = np.random.default_rng(0).standard_normal((3, 10_000)).astype(np.float32)
    scores = np.ascontiguousarray(np.concatenate([ramp, noise, np.round(noise)]))
    for k in (1, 10, 64, 9_999, 10_000):
        expected = topk_reference(scores, k)
        assert_same(topk(scores, k), expected)


def test_any_number_of_threads_gives_the_same_answer() -> None:
    scores = np.random.default_rng(1).integers(0, 9, (13, 500)).astype(np.float32)
    expected = topk_reference(scores, 20)
    for num_threads in (1, 2, 3, 12, 13, 64):
        assert_same(topk(scores, 20, num_threads=num_threads), expected)


def test_candidates_are_a_set_and_padding_may_stand_anywhere() -> None:
    scores = matrix([9, 1, 5, 5], [9, 1, 5, 5])
    candidates = np.array([[3, -1, 2, 3], [-1, -1, -1, -1]])
    answer = topk(scores, 3, candidates)
    assert answer.rows.tolist() == [[2, 3, -1], [-1, -1, -1]]
    assert answer.scores.tolist() == [[5, 5, -INF], [-INF, -INF, -INF]]


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_nan_is_refused_by_row_and_column(num_threads: int) -> None:
    scores = np.zeros((5, 300), np.float32)
    scores[4, 0] = scores[3, 299] = scores[3, 7] = np.nan
    with pytest.raises(DataError, match="row 3, column 7: required a number or infinity; received NaN"):
        topk(scores, 2, num_threads=num_threads)


@pytest.mark.parametrize("column", [0, 1, 63, 64, 65, 128, 299])
def test_no_block_hides_a_nan(column: int) -> None:
    # The best scores come first, so later blocks hold no winner: only the NaN may stop the scan there.
    scores = -np.arange(300, dtype=np.float32)[None]
    scores[0, column] = np.nan
    with pytest.raises(DataError, match=f"row 0, column {column}:"):
        topk(scores, 1)


def test_only_ranked_scores_are_looked_at() -> None:
    scores = matrix([np.nan, 1, 2])
    assert topk(scores, 1, np.array([[1, 2]])).rows.tolist() == [[2]]
    with pytest.raises(DataError, match="row 0, column 0"):
        topk(scores, 1, np.array([[1, 0]]))


@pytest.mark.parametrize("candidate", [-2, 3, 2**40])
def test_a_candidate_outside_the_catalogue_is_refused(candidate: int) -> None:
    candidates = np.array([[0, 1], [2, candidate]])
    with pytest.raises(DataError, match=f"candidates, row 1, column 1: .* received {candidate}"):
        topk(matrix([1, 2, 3], [1, 2, 3]), 1, candidates)


def test_a_wrong_array_or_count_is_refused() -> None:
    scores = np.zeros((2, 3), np.float32)
    with pytest.raises(DataError, match=r"topk scores: .* received C-contiguous float64 of shape \(2, 3\)"):
        topk(scores.astype(np.float64), 1)
    with pytest.raises(DataError, match="topk scores: .* received not C-contiguous"):
        topk(scores.T, 1)
    with pytest.raises(DataError, match="topk scores: "):
        topk(scores[0], 1)
    with pytest.raises(DataError, match="topk candidates: .* received C-contiguous int32"):
        topk(scores, 1, np.zeros((2, 1), np.int32))
    with pytest.raises(DataError, match="topk candidates: required 2 rows"):
        topk(scores, 1, np.zeros((1, 1), np.int64))
    with pytest.raises(DataError, match="topk k: required at least 1; received 0"):
        topk(scores, 0)
    with pytest.raises(DataError, match="topk num_threads: required at least 1; received 0"):
        topk(scores, 1, num_threads=0)


def test_the_gil_is_released_while_ranking() -> None:
    # Ascending scores displace a winner at every step: a long call. Were the GIL held, this thread could take no stamp
    # between the call's first and last moment.
    scores = np.arange(6_000_000, dtype=np.float32)[None]
    span: list[float] = []

    def rank() -> None:
        span.append(time.perf_counter())
        topk(scores, 1_000, num_threads=1)
        span.append(time.perf_counter())

    thread = threading.Thread(target=rank)
    thread.start()
    stamps = []
    for _ in itertools.count():
        stamps.append(time.perf_counter())
        if not thread.is_alive():
            break
        time.sleep(0.001)
    begin, end = span
    quarter = (end - begin) / 4
    assert quarter > 0.01, "the call was too short to show anything"
    assert any(begin + quarter < stamp < end - quarter for stamp in stamps)
