"""The stream: every row once, the same again, from any position, for any number of ranks."""

from itertools import chain, pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest

from rgalign.data.dataset import Dataset, DatasetWriter
from rgalign.data.reader import Position, stream
from rgalign.errors import DataError

NUM_ROWS = 53


@pytest.fixture
def dataset(tmp_path, schema, catalog, sessions):
    with DatasetWriter(tmp_path / "d", schema, catalog, rows_per_shard=10) as writer:
        writer.write("train", sessions(NUM_ROWS))
    return Dataset.open(tmp_path / "d")


def ids(batches):
    return [session for table, _, _ in batches for session in table["session_id"].to_pylist()]


def read(dataset, **options):
    options = {"seed": 7, "epoch": 2, "batch_size": 4} | options
    batch_size = options.pop("batch_size")
    return list(stream(dataset, "train", ["session_id"], batch_size, **options))


def test_in_order_without_shuffling(dataset):
    assert ids(read(dataset, shuffle=False)) == [f"s{row}" for row in range(NUM_ROWS)]


def test_shuffled_rows_come_once_and_by_seed_and_epoch(dataset):
    first = ids(read(dataset))
    assert sorted(first) == sorted(f"s{row}" for row in range(NUM_ROWS))
    assert first == ids(read(dataset))
    assert first != ids(read(dataset, epoch=3)) != ids(read(dataset, seed=8, epoch=3))
    # Shards are shuffled and so are the rows in them.
    numbers = [int(session[1:]) for session in first]
    shards = [number // 10 for number in numbers]
    changes = sum(a != b for a, b in pairwise(shards))
    assert changes == 5
    assert shards != sorted(shards)
    assert any(b < a for a, b in pairwise(numbers) if a // 10 == b // 10)


def test_batches_are_even_and_only_the_columns_asked_for(dataset):
    sizes = [len(table) for table, _, _ in read(dataset)]
    assert set(sizes) == {3, 4}  # shards of 10 as 3 3 4, the shard of 3 as one
    assert read(dataset)[0][0].column_names == ["session_id"]


def test_row_ids_find_the_rows(dataset):
    for table, place, _ in read(dataset):
        there = pq.read_table(place.shard)["session_id"].to_numpy()[place.rows]
        assert there.tolist() == table["session_id"].to_pylist()


@pytest.mark.parametrize("shuffle", [True, False])
def test_resuming_after_any_batch_gives_the_rest(dataset, shuffle):
    whole = read(dataset, shuffle=shuffle)
    for done, (_, _, position) in enumerate(whole, start=1):
        rest = read(dataset, shuffle=shuffle, position=position)
        assert ids(rest) == ids(whole[done:])
        assert [p for _, _, p in rest] == [p for _, _, p in whole[done:]]


@pytest.mark.parametrize(("world", "batch_size"), [(2, 2), (3, 2), (3, 1)])
def test_ranks_share_every_row_once_and_take_equal_steps(dataset, world, batch_size):
    shares = [read(dataset, rank=rank, world=world, batch_size=batch_size) for rank in range(world)]
    assert sorted(ids(chain(*shares))) == sorted(f"s{row}" for row in range(NUM_ROWS))
    assert len({len(share) for share in shares}) == 1
    for steps in zip(*shares, strict=True):
        assert len({position for _, _, position in steps}) == 1
        lengths = [len(table) for table, _, _ in steps]
        assert max(lengths) - min(lengths) <= 1


def test_a_shard_with_fewer_rows_than_ranks(dataset):
    shares = [read(dataset, rank=rank, world=4) for rank in range(4)]
    assert len({len(share) for share in shares}) == 1
    assert len(ids(chain(*shares))) == 50
    in_order = [read(dataset, rank=rank, world=4, shuffle=False) for rank in range(4)]
    assert len(ids(chain(*in_order))) == NUM_ROWS


def test_an_empty_shard_is_passed_over(dataset):
    shard = dataset.shards("train")[2]
    pq.write_table(pq.read_table(shard).slice(0, 0), shard)
    assert len(ids(read(dataset))) == NUM_ROWS - 10
    assert len(np.unique(ids(read(dataset)))) == NUM_ROWS - 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position": Position(1, 0, 0)}, "required epoch 2; received epoch 1"),
        ({"position": Position(2, 0, 1)}, "required an offset between two batches"),
        ({"rank": 2, "world": 2}, "0 <= rank < world"),
        ({"batch_size": 0}, "batch_size >= 1"),
    ],
)
def test_impossible_requests(dataset, options, message):
    with pytest.raises(DataError, match=message):
        read(dataset, **options)


def test_a_split_that_is_not_there(dataset):
    with pytest.raises(DataError, match=r"required \*.parquet files"):
        next(stream(dataset, "valid", None, 4))
