"""The order of rows: every row once an epoch, each optimiser step a random set, in order of length."""

from __future__ import annotations

import numpy as np

from rgalign.training.alignment.batches import completion_rows, pair_rows, softmax_rows
from rgalign.training.alignment.sorted_steps import SortedSteps, row_length
from rgalign.training.alignment.tokenised import TokenisedPreference


def test_every_row_comes_once_and_a_step_is_in_order_of_length() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, 50)
    sampler = SortedSteps(lengths.tolist(), 12, seed=3)
    order = list(sampler)
    assert sorted(order) == list(range(50))
    assert len(sampler) == 50
    steps = [order[start : start + 12] for start in range(0, 50, 12)]
    assert all((np.diff(lengths[step]) <= 0).all() for step in steps)
    means = [lengths[step].mean() for step in steps[:-1]]
    assert max(means) - min(means) < 20, "steps are random sets, not slices of one sorted order"


def test_epochs_differ_and_come_back() -> None:
    sampler = SortedSteps([4] * 30, 6, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1]
    assert list(SortedSteps([4] * 30, 6, seed=4)) != orders[0]


def test_a_rows_length_is_that_of_its_longest_sequence() -> None:
    session = TokenisedPreference(row=0, prompt=[1] * 7, chosen=[2] * 3, rejected=[[3] * 2, [4] * 5])
    assert [row_length(row) for row in completion_rows([session])] == [10]
    assert [row_length(row) for row in pair_rows([session])] == [10, 12]
    assert [row_length(row) for row in softmax_rows([session])] == [12]
