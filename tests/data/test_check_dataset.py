"""Every kind of bad input: found, counted, shown, and moved out of the way when asked."""

import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rgalign.data.check import check_dataset
from rgalign.data.dataset import Dataset, DatasetWriter
from rgalign.errors import DataError

NUM_ROWS = 20


@pytest.fixture
def dataset(tmp_path, schema, catalog, sessions):
    """dataset(changes): a dataset directory with the changes written past the writer's own checks."""

    def make(changes=None, change=lambda table: table):
        path = tmp_path / "d"
        with DatasetWriter(path, schema, catalog, rows_per_shard=10) as writer:
            writer.write("train", sessions(NUM_ROWS))
            writer.write("valid", sessions(5, start=NUM_ROWS))
        table = change(sessions(NUM_ROWS, changes=changes))
        for number, shard in enumerate(Dataset.open(path).shards("train")):
            pq.write_table(table.slice(10 * number, 10), shard)
        return path

    return make


def only(report):
    assert len(report.findings) == 1, report.describe()
    return report.findings[0]


def test_a_clean_dataset(dataset):
    report = check_dataset(dataset())
    assert report.findings == []
    assert (report.exit_code, report.num_rows, report.num_bad) == (0, {"train": 20, "valid": 5}, 0)


NAN, INF = math.nan, math.inf
BAD_ROWS = {
    "unknown category": ("page", {3: "attic"}, "warning", "values of vocabulary page", [3]),
    "unknown intent in a history": ("seen", {3: ["a", "zzz"]}, "warning", "vocabulary intents", [3]),
    "unknown intent in a group": ("past_intents", {5: ["a", "zzz"]}, "warning", "vocabulary intents", [5]),
    "unknown intent clicked": ("clicked", {3: ["a", "zzz"]}, "error", "ids of the catalogue", [3]),
    "null clicked": ("clicked", {3: [None]}, "error", "ids of the catalogue", [3]),
    "empty clicked": ("clicked", {3: [], 14: None}, "warning", "an intent", [3, 14]),
    "unknown candidate": ("candidates", {0: ["a", "zzz"]}, "warning", "ids of the catalogue", [0]),
    "clicked outside candidates": ("candidates", {0: ["b"], 1: ["b"]}, "warning", "candidates", [0]),
    "NaN": ("spend", {12: NAN}, "error", "a finite number", [12]),
    "infinite": ("spend", {12: INF}, "error", "a finite number", [12]),
    "out of range": ("spend", {12: -1.0, 13: 101.0}, "warning", "0 to 100", [12, 13]),
    "NaN in a history": ("past_hours", {5: [NAN, 1.0]}, "error", "finite numbers", [5]),
    "negative age": ("past_hours", {5: [-0.1, 1.0]}, "error", "nothing from the future", [5]),
    "oldest first": ("past_hours", {5: [7.0, 1.0]}, "warning", "newest first", [5]),
    "unequal lengths": ("past_hours", {5: [1.0]}, "error", "as many values as past_intents", [5]),
    "duplicate session": ("session_id", {3: "s1", 15: "s1"}, "error", "unique ids", [3, 15]),
    "duplicate session of another split": ("session_id", {3: "s22"}, "error", "unique ids", [0]),
    "no session id": ("session_id", {3: None, 4: None}, "error", "a value", [3, 4]),
    "no time": ("ts", {3: None}, "error", "a value", [3]),
    "no region": ("region", {3: None}, "warning", "a value", [3]),
    "long history": ("seen", {3: ["a"] * 5}, "warning", "at most 4 values", [3]),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_found_and_counted(dataset, case, tmp_path):
    column, changes, severity, required, rows = BAD_ROWS[case]
    path = dataset({column: changes})
    finding = only(check_dataset(path))
    assert finding.severity == severity
    assert required in finding.required
    assert finding.count == len(rows)
    if case == "duplicate session of another split":  # the first of two stays: it is valid's row that is in excess
        assert finding.split == "valid"
        rows = [2]
    else:
        assert finding.field == ("clicked" if case == "clicked outside candidates" else column)
    assert [example.row for example in finding.examples] == rows

    report = check_dataset(path, tmp_path / "bad.parquet")
    assert report.exit_code == (1 if severity == "error" else 0)
    assert report.num_bad == (len(rows) if severity == "error" else 0)
    again = check_dataset(path)
    if severity == "warning":
        assert len(again.findings) == 1
        assert not (tmp_path / "bad.parquet").exists()
    else:
        assert again.findings == []
        assert sum(again.num_rows.values()) == 25 - len(rows)
        assert pq.read_table(tmp_path / "bad.parquet")["quarantine_row"].to_pylist() == rows


def test_quarantine_says_what_is_wrong_and_keeps_the_row(dataset, tmp_path):
    path = dataset({"spend": {2: NAN}, "clicked": {2: ["zzz"], 17: ["zzz"]}, "page": {5: "attic"}})
    report = check_dataset(path, tmp_path / "bad.parquet")
    assert report.num_bad == 2
    rows = pq.read_table(tmp_path / "bad.parquet").to_pylist()
    assert [(row["quarantine_split"], row["quarantine_row"], row["session_id"]) for row in rows] == [
        ("train", 2, "s2"),
        ("train", 17, "s17"),
    ]
    assert rows[0]["quarantine_fields"] == ["clicked", "spend"]
    assert "ids of the catalogue" in rows[1]["quarantine_required"][0]
    assert rows[1]["clicked"] == ["zzz"]
    kept = Dataset.open(path).table("train")["session_id"].to_pylist()
    assert kept == [f"s{row}" for row in range(NUM_ROWS) if row not in (2, 17)]
    with pytest.raises(DataError, match="required a file that does not exist"):
        check_dataset(path, tmp_path / "bad.parquet")


def test_at_most_five_examples(dataset):
    report = check_dataset(dataset({"page": dict.fromkeys(range(4, 16), "attic")}))
    finding = only(report)
    assert finding.count == 12
    assert [example.row for example in finding.examples] == [4, 5, 6, 7, 8]
    text = report.describe()
    assert "warning  train, page: required values of vocabulary page (others become unknown); 12 rows" in text
    assert "row 4: 'attic'" in text


def test_personal_values_are_not_shown(dataset):
    path = dataset({"page": {3: "12 Elm Street"}})
    text = (path / "schema.yaml").read_text()
    assert "12 Elm Street" in check_dataset(path).describe()
    (path / "schema.yaml").write_text(text.replace("pii: false", "pii: true", 1))
    described = check_dataset(path).describe()
    assert "12 Elm Street" not in described
    assert "a personal value, not shown" in described


def test_a_history_of_a_million(dataset):
    long = ["a"] * 1_000_000
    finding = only(check_dataset(dataset({"seen": {7: long}})))
    assert finding.severity == "warning"
    assert finding.examples[0].received.startswith("1000000 values ['a', 'a'")


def test_unsorted_times(dataset):
    finding = only(check_dataset(dataset(change=lambda table: table.take(pa.array([1, 0, *range(2, NUM_ROWS)])))))
    assert (finding.field, finding.severity, finding.count) == ("ts", "warning", 1)
    assert finding.examples[0].row == 1


def test_splits_that_overlap_in_time(dataset, sessions):
    def later(table):
        return table.set_column(2, "ts", sessions(NUM_ROWS, start=10)["ts"])

    finding = only(check_dataset(dataset(change=later)))
    assert (finding.split, finding.required) == ("valid", "times after those of train")


@pytest.mark.parametrize(
    ("change", "field", "received"),
    [
        (lambda t: t.drop_columns(["spend"]), "spend", "no such column"),
        (lambda t: t.set_column(5, "spend", pa.array(["much"] * NUM_ROWS)), "spend", "string"),
        (lambda t: t.set_column(6, "seen", pa.array(["a|b"] * NUM_ROWS)), "seen", "string"),
        (lambda t: t.set_column(4, "page", pa.array([1.5] * NUM_ROWS)), "page", "double"),
        (lambda t: t.set_column(2, "ts", pa.array(["now"] * NUM_ROWS)), "ts", "string"),
    ],
)
def test_a_column_of_another_type_is_fatal(dataset, change, field, received):
    report = check_dataset(dataset(change=change))
    assert report.exit_code == 2
    assert {finding.field for finding in report.findings} == {field}
    assert report.findings[0].examples[0].received.startswith(received)


def test_directories_that_cannot_be_used(dataset, tmp_path):
    assert check_dataset(tmp_path / "nowhere").exit_code == 2
    path = dataset()
    intents = path / "intents.parquet"
    table = pq.read_table(intents)
    for broken, message in (
        (table.slice(0, 0), "at least one intent"),
        (pa.concat_tables([table, table]), "unique ids"),
    ):
        pq.write_table(broken, intents)
        report = check_dataset(path)
        assert report.exit_code == 2
        assert message in only(report).required
    pq.write_table(table, intents)
    (path / "schema.yaml").write_text("name: x\nfeatures: []\n")
    assert check_dataset(path).exit_code == 2


def test_a_dataset_without_training_rows_is_fatal(dataset):
    path = dataset()
    for shard in Dataset.open(path).shards("train"):
        shard.unlink()
    report = check_dataset(path)
    assert report.exit_code == 2
    assert only(report).split == "train"
