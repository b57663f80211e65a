"""Sessions in memory and streamed: the same batches to the bit, whatever they were encoded with."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from rgalign.config import parse_config
from rgalign.data.batch import SessionBatch
from rgalign.data.dataset import Dataset
from rgalign.data.encode import NumericStats, SessionEncoder
from rgalign.training.latents import LatentStore
from rgalign.training.sessions import (
    Latents,
    Order,
    Sessions,
    click_counts,
    evenly_spaced,
    open_sessions,
    tables,
    trimmed,
)
from rgalign.training.stage1_config import Stage1Config
from rgalign.training.stage1_inputs import Stage1Inputs


@pytest.fixture(scope="module")
def encoder(small_dataset: Dataset) -> SessionEncoder:
    stats = NumericStats.fit(small_dataset.table("train"), small_dataset.schema)
    return SessionEncoder(small_dataset.schema, small_dataset.catalog, stats)


@pytest.fixture(scope="module")
def both(small_dataset: Dataset, small_latents: LatentStore, encoder: SessionEncoder) -> tuple[Sessions, Sessions]:
    latents = Latents(small_latents, small_dataset, "train")
    return (
        open_sessions(small_dataset, "train", encoder, latents, memory_rows=1000),
        open_sessions(small_dataset, "train", encoder, latents, memory_rows=0),
    )


def tensors(batch: SessionBatch) -> dict[str, torch.Tensor]:
    """Every tensor of a batch under a flat name."""
    flat: dict[str, torch.Tensor] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                add(f"{name}.{key}", part)
        elif value is not None:
            flat[name] = value

    for field in fields(batch):
        add(field.name, getattr(batch, field.name))
    return flat


def assert_equal(a: SessionBatch, b: SessionBatch) -> None:
    ours, theirs = tensors(a), tensors(b)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor, theirs[name], rtol=0, atol=0, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(("shuffle", "world"), [(True, 1), (True, 2), (False, 1)])
def test_memory_and_stream_give_the_same_batches(both: tuple[Sessions, Sessions], shuffle: bool, world: int):
    seen: list[int] = []
    for rank in range(world):
        order = Order(batch_size=20, seed=3, epoch=1, shuffle=shuffle, rank=rank, world=world)
        memory, streamed = ([*sessions.steps(order)] for sessions in both)
        assert len(memory) == len(streamed) == both[0].num_steps(order) == both[1].num_steps(order)
        for ours, theirs in zip(memory, streamed, strict=True):
            assert ours.after == theirs.after
            np.testing.assert_array_equal(ours.rows, theirs.rows)
            assert_equal(ours.sessions, theirs.sessions)
            seen += ours.rows.tolist()
    assert sorted(seen) == list(range(len(both[0])))
    assert (seen == sorted(seen)) == (not shuffle)


def test_batches_hold_the_rows_they_name(
    both: tuple[Sessions, Sessions], small_dataset: Dataset, small_latents: LatentStore, encoder: SessionEncoder
):
    table = small_dataset.table("train")
    rows_of_store = small_latents.rows(small_dataset, "train")
    for step in both[0].steps(Order(batch_size=50, seed=1, shuffle=True)):
        expected = encoder.encode(table.take(step.rows), small_latents.take(rows_of_store[step.rows]))
        assert_equal(step.sessions, trimmed(expected, len(small_dataset.catalog)))


def test_every_position_goes_on_where_it_was_taken(both: tuple[Sessions, Sessions]):
    order = Order(batch_size=30, seed=2, epoch=4, shuffle=True)
    whole = [step.rows.tolist() for step in both[0].steps(order)]
    for sessions in both:
        for count, step in enumerate(sessions.steps(order), start=1):
            assert [rest.rows.tolist() for rest in sessions.steps(order, step.after)] == whole[count:]


def test_epochs_and_seeds_have_their_own_order(both: tuple[Sessions, Sessions]):
    orders = [Order(1000, seed=seed, epoch=epoch, shuffle=True) for seed in (0, 1) for epoch in (0, 1)]
    found = {tuple(row for step in both[0].steps(order) for row in step.rows.tolist()) for order in orders}
    assert len(found) == 4


def test_trimming_changes_no_session(small_dataset: Dataset, encoder: SessionEncoder):
    """A batch cut out of a wide one is the batch that is encoded alone."""
    table = small_dataset.table("train")
    whole = encoder.encode(table)
    assert whole.candidates is not None  # a third of the sessions has a slate, the others are written out
    short = np.flatnonzero((whole.sequences["viewed"] != 0).sum(1).numpy() <= 1)[:5]
    alone = encoder.encode(table.take(short))
    assert alone.sequences["viewed"].shape[1] < whole.sequences["viewed"].shape[1]
    size = len(small_dataset.catalog)
    assert_equal(trimmed(whole.select(torch.from_numpy(short)), size), trimmed(alone, size))
    unlisted = np.array([1, 2, 4])
    assert trimmed(whole.select(torch.from_numpy(unlisted)), size).candidates is None
    # A session without any history keeps one column of padding.
    empty = np.flatnonzero((whole.sequences["viewed"] != 0).sum(1).numpy() == 0)[:1]
    assert trimmed(whole.select(torch.from_numpy(empty)), size).sequences["viewed"].tolist() == [[0]]


def test_a_subset_is_spread_evenly_and_is_all_that_is_seen(small_dataset: Dataset, encoder: SessionEncoder):
    subset = evenly_spaced(300, 70)
    assert subset is not None
    assert len(np.unique(subset)) == 70
    assert np.diff(subset).min() >= 4
    assert np.diff(subset).max() <= 5
    assert evenly_spaced(300, 300) is None
    sessions = open_sessions(small_dataset, "train", encoder, None, memory_rows=0, subset=subset)
    assert len(sessions) == 70
    order = Order(batch_size=16, seed=0, epoch=0, shuffle=True)
    steps = [*sessions.steps(order)]
    assert len(steps) == sessions.num_steps(order) == 5
    assert sorted(row for step in steps for row in step.rows) == subset.tolist()
    table = small_dataset.table("train")
    for count, step in enumerate(steps, start=1):
        expected = trimmed(encoder.encode(table.take(step.rows)), len(small_dataset.catalog))
        assert_equal(step.sessions, expected)
        rest = [later.rows.tolist() for later in sessions.steps(order, step.after)]
        assert rest == [later.rows.tolist() for later in steps[count:]]
    found = [
        row["session_id"] for part in tables(small_dataset, "train", ["session_id"], subset) for row in part.to_pylist()
    ]
    assert found == table.take(subset).column("session_id").to_pylist()


def test_click_counts(small_dataset: Dataset):
    clicked = small_dataset.table("train", ["clicked"]).to_pylist()
    expected = [sum(intent in row["clicked"] for row in clicked) for intent in small_dataset.catalog.ids]
    assert sum(expected) >= 300
    assert click_counts(tables(small_dataset, "train", ["clicked"]), small_dataset.catalog).tolist() == expected


def test_statistics_come_from_the_sessions_that_are_used(
    stage1_values: Callable[..., dict[str, Any]], small_dataset: Dataset, small_latents: LatentStore
):
    config = parse_config(Stage1Config, stage1_values(max_train=40), where="test")
    encoded = Stage1Inputs.open(config).encode()
    subset = evenly_spaced(300, 40)
    assert subset is not None
    used = small_dataset.table("train").take(subset)
    expected_stats = NumericStats.fit(used, small_dataset.schema).moments
    for name, moments in encoded.encoder.stats.moments.items():
        assert moments == pytest.approx(expected_stats[name], rel=1e-9)
    assert encoded.clicks.sum() == sum(len(row) for row in used.column("clicked").to_pylist())
    assert encoded.latent_sample is not None
    expected = small_latents.take(small_latents.rows(small_dataset, "train")[subset])
    np.testing.assert_array_equal(encoded.latent_sample.numpy(), expected)
