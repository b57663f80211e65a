"""A user's own CSV or parquet file of sessions -> dataset directory."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rgalign.data.check import check_dataset
from rgalign.data.dataset import Dataset
from rgalign.data.sources.session_table import import_session_table
from rgalign.errors import DataError
from rgalign.schema import FeatureSchema

HEADER = "session_id,ts,page,spend,seen,past_intents,past_hours,clicked"
INTENTS = "id,title,description\n1,Refund,\n2,Delivery,Where is it\n3,Voucher,\n"


def line(number: int, **changed: str) -> str:
    row = {
        "session_id": f"s{number:02d}",
        "ts": f"2026-01-{1 + number:02d} 08:00:00",
        "page": "home",
        "spend": "3.5",
        "seen": "1|2" if number % 2 else "",
        "past_intents": "3|1",
        "past_hours": "1.5|40",
        "clicked": "2" if number % 3 else "1|3",
    }
    return ",".join({**row, **changed}.values())


def write(folder: Path, lines: list[str], schema: FeatureSchema) -> tuple[Path, Path, Path]:
    (folder / "logs.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    (folder / "intents.csv").write_text(INTENTS)
    schema.save(folder / "schema.yaml")
    return folder / "logs.csv", folder / "schema.yaml", folder / "intents.csv"


def sizes(dataset: Dataset) -> list[int]:
    return [dataset.num_rows(split) for split in ("train", "valid", "test")]


def test_a_csv_becomes_a_dataset_in_time_order(tmp_path: Path, schema: FeatureSchema) -> None:
    files = write(tmp_path, [line(number) for number in reversed(range(20))], schema)
    dataset = import_session_table(*files, tmp_path / "out")
    assert sizes(dataset) == [17, 1, 2]
    train = dataset.table("train")
    assert train["session_id"].to_pylist() == [f"s{number:02d}" for number in range(17)]
    assert train["clicked"].to_pylist()[:3] == [["1", "3"], ["2"], ["2"]]
    assert train["seen"].to_pylist()[:2] == [[], ["1", "2"]]
    assert train["past_hours"].to_pylist()[0] == [1.5, 40.0]
    assert train["user_id"].to_pylist()[0] == "s00"
    assert train["candidates"].to_pylist()[0] == []
    assert dataset.catalog.titles == ("Refund", "Delivery", "Voucher")


def test_what_it_writes_passes_the_check(tmp_path: Path, schema: FeatureSchema) -> None:
    files = write(tmp_path, [line(number) for number in range(20)], schema)
    report = check_dataset(import_session_table(*files, tmp_path / "out").path)
    assert report.exit_code == 0, report.describe()


def test_splits_begin_where_they_are_told_to(tmp_path: Path, schema: FeatureSchema) -> None:
    files = write(tmp_path, [line(number) for number in range(20)], schema)
    times = {"valid_from": "2026-01-11", "test_from": "2026-01-16T08:00:00"}
    assert sizes(import_session_table(*files, tmp_path / "out", **times)) == [10, 5, 5]
    for wrong, message in (
        ({"valid_from": "2026-01-11"}, "both valid_from and test_from"),
        ({"valid_from": "soon", "test_from": "later"}, "ISO times"),
        ({"valid_from": "2026-01-11", "test_from": "2027-01-01"}, "test split: required at least one session"),
    ):
        with pytest.raises(DataError, match=message):
            import_session_table(*files, tmp_path / "wrong", **wrong)
        assert not (tmp_path / "wrong").exists()


def test_rows_without_an_id_or_a_time_go_to_quarantine(tmp_path: Path, schema: FeatureSchema) -> None:
    lines = [line(number) for number in range(20)]
    lines[4] = line(4, ts="")
    files = write(tmp_path, lines, schema)
    with pytest.raises(DataError, match=r"1 rows without one \(row 4, counted from 0\)"):
        import_session_table(*files, tmp_path / "out")
    dataset = import_session_table(*files, tmp_path / "out", quarantine=tmp_path / "bad.parquet")
    assert sum(sizes(dataset)) == 19
    aside = pq.read_table(tmp_path / "bad.parquet")
    assert aside["quarantine_row"].to_pylist() == [4]
    assert aside["session_id"].to_pylist() == ["s04"]


def test_what_is_refused(tmp_path: Path, schema: FeatureSchema) -> None:
    logs, schema_file, intents = write(tmp_path, [line(number) for number in range(20)], schema)
    text = logs.read_text()
    for changed, message in (
        (text.replace("2026-01-05 08:00:00", "5 January"), "column ts: required times such as"),
        (text.replace("1.5|40", "1.5|soon", 1), "column past_hours: required lists of numbers"),
        (text.replace("session_id,ts", "id,ts", 1), "required columns session_id"),
        (text.replace(",page,", ",pages,", 1), "required columns page"),
        (HEADER + "\n", "at least one row"),
    ):
        logs.write_text(changed)
        with pytest.raises(DataError, match=message):
            import_session_table(logs, schema_file, intents, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    logs.write_text(text)
    intents.write_text("name\nx\n")
    with pytest.raises(DataError, match="columns id and title"):
        import_session_table(logs, schema_file, intents, tmp_path / "out")


def test_parquet_lists_stay_as_they_are(tmp_path: Path, schema: FeatureSchema) -> None:
    _, schema_file, intents = write(tmp_path, [line(0)], schema)
    rows = {
        "session_id": [str(number) for number in range(20)],
        "ts": pa.array(range(20), pa.timestamp("s")),
        "page": ["cart"] * 20,
        "spend": [1.0] * 20,
        "seen": [["1"], []] * 10,
        "past_intents": [["2"]] * 20,
        "past_hours": [[4.0]] * 20,
        "clicked": [["3"]] * 20,
    }
    pq.write_table(pa.table(rows), tmp_path / "logs.parquet")
    dataset = import_session_table(tmp_path / "logs.parquet", schema_file, intents, tmp_path / "out")
    assert dataset.table("train")["seen"].to_pylist()[:2] == [["1"], []]
    integers = pa.table({**rows, "ts": list(range(20))})
    pq.write_table(integers, tmp_path / "seconds.parquet")
    with pytest.raises(DataError, match="seconds since when"):
        import_session_table(tmp_path / "seconds.parquet", schema_file, intents, tmp_path / "wrong")
