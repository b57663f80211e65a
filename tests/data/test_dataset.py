"""The dataset directory: what is written comes back, whole or not at all."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rgalign.data.dataset import Dataset, DatasetWriter
from rgalign.errors import DataError


@pytest.fixture
def write(tmp_path, schema, catalog):
    def run(tables, name="dataset", rows_per_shard=10):
        with DatasetWriter(tmp_path / name, schema, catalog, rows_per_shard) as writer:
            for split, table in tables:
                writer.write(split, table)
        return Dataset.open(tmp_path / name)

    return run


def test_rows_come_back_in_order_and_in_even_shards(write, sessions):
    rows = sessions(25)
    dataset = write([("train", rows.slice(0, 3)), ("train", rows.slice(3, 20)), ("train", rows.slice(23))])
    assert [len(pq.read_table(shard)) for shard in dataset.shards("train")] == [10, 10, 5]
    assert dataset.table("train").equals(rows)
    assert dataset.num_rows("train") == 25
    assert dataset.num_rows("test") == 0
    assert dataset.table("train", ["ts", "page"]).column_names == ["ts", "page"]
    assert dataset.schema.vocabulary("intents").string("b") == "Delivery"
    assert not list(dataset.path.parent.glob(".*"))


def test_truth_has_its_splits_shards(write, sessions):
    truth = pa.table({"session_id": [f"s{row}" for row in range(25)], "noise": [False] * 25})
    dataset = write([("train", sessions(25)), ("truth/train", truth)])
    shards = sorted((dataset.path / "truth" / "train").glob("*.parquet"))
    for ours, theirs in zip(dataset.shards("train"), shards, strict=True):
        assert pq.read_table(ours)["session_id"].equals(pq.read_table(theirs)["session_id"])


def test_fingerprint_follows_content(write, sessions):
    first, same = write([("train", sessions(5))], "first"), write([("train", sessions(5))], "same")
    other = write([("train", sessions(5, changes={"page": {0: "cart"}}))], "other")
    assert first.fingerprint("train") == same.fingerprint("train") != other.fingerprint("train")
    assert first.fingerprint("train") != first.fingerprint("valid")
    shard = first.shards("train")[0]
    before = first.fingerprint("train")
    pq.write_table(pq.read_table(other.shards("train")[0]), shard)
    assert first.fingerprint("train") != before


def test_an_interrupted_writer_leaves_nothing(tmp_path, schema, catalog, sessions):
    def interrupted():
        with DatasetWriter(tmp_path / "d", schema, catalog, 5) as writer:
            writer.write("train", sessions(20))
            assert len(list(tmp_path.rglob("part-*.parquet"))) == 4
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_writer_keeps_to_free_paths(tmp_path, schema, catalog, sessions):
    (tmp_path / "empty").mkdir()
    with DatasetWriter(tmp_path / "empty", schema, catalog) as writer:
        writer.write("train", sessions(3))
    assert Dataset.open(tmp_path / "empty").num_rows("train") == 3
    with pytest.raises(DataError, match="required a path that is free"):
        DatasetWriter(tmp_path / "empty", schema, catalog)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.drop_columns(["spend"]), "required columns spend"),
        (lambda rows: rows.drop_columns(["clicked"]), "required columns clicked"),
        (lambda rows: rows.set_column(2, "ts", pa.array(["soon"] * 4)), "column ts: required timestamp"),
        (lambda rows: rows.take(pa.array([1, 0, 2, 3])), "required times in ascending order"),
    ],
)
def test_rows_that_are_refused(write, sessions, change, message):
    with pytest.raises(DataError, match=message):
        write([("train", change(sessions(4)))])


def test_time_order_holds_between_writes(write, sessions):
    with pytest.raises(DataError, match="ascending order"):
        write([("train", sessions(3, start=5)), ("train", sessions(3))])


def test_what_is_not_there_is_named(write, sessions, tmp_path):
    dataset = write([("train", sessions(3))])
    with pytest.raises(DataError, match="required train or valid or test; received 'holdout'"):
        dataset.shards("holdout")
    with pytest.raises(DataError, match=r"valid: required \*.parquet files"):
        dataset.table("valid")
    with pytest.raises(DataError, match="required columns nothing"):
        dataset.table("train", ["nothing"])
    with pytest.raises(DataError, match="no such directory"):
        Dataset.open(Path("/nowhere"))
