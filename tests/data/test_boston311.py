"""The city's own CSV: against the arranged columns where both are at hand, and by itself."""

import csv
import gzip
import io

import numpy as np
import pyarrow as pa
import pytest

from rgalign.data.check import check_dataset
from rgalign.data.sources import boston311
from rgalign.data.sources.arranged import read_contacts, read_intents
from rgalign.data.sources.boston311 import (
    contacts_table,
    import_boston311,
    intent_id,
    outcome,
    place_kind,
    read_cases,
    street_name,
)
from rgalign.errors import DataError

HEADER_LINE = (
    "case_enquiry_id,open_dt,target_dt,closed_dt,closure_reason,subject,reason,type,location,neighborhood,ward,"
    "location_street_name,source"
)
HEADER = next(csv.reader([HEADER_LINE]))


def case(number, opened, **fields):
    values = dict.fromkeys(HEADER, "")
    values |= {"case_enquiry_id": str(number), "open_dt": opened, "subject": "Works", "reason": "Streets"}
    values |= {"type": "Pothole Repair", "source": "Constituent Call", "location": "3 Elm St  Boston  MA  02118"}
    values |= {"location_street_name": "3 Elm St", "neighborhood": "South End", "ward": "Ward 4"}
    return values | fields


def text(cases, header=HEADER):
    stream = io.StringIO()
    writer = csv.DictWriter(stream, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(cases)
    return stream.getvalue()


def month(count=300):
    """Cases every two hours at seven places; every fifth is the staff's."""
    return [
        case(
            number,
            f"2012-03-{1 + number // 12:02d} {number % 12 * 2:02d}:00:00",
            type=("Pothole Repair", "Tree Removal", "Noise  Complaint")[number % 3],
            source="Employee Generated" if number % 5 == 4 else ("Self Service", "Constituent Call")[number % 2],
            location=f"{number % 7} Elm St  Boston  MA",
            location_street_name=f"{number % 7} Elm St",
            closed_dt=f"2012-03-{2 + number // 12:02d} 01:00:00",
            closure_reason="Case Closed Case Resolved filled",
        )
        for number in range(count)
    ]


@pytest.fixture
def raw(tmp_path):
    def write(content, name="raw.csv"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
        return path

    return write


def test_columns_agree_with_the_arranged_csv(shared_data, monkeypatch):
    """The arranged CSV was derived from the same lines by other code. All histories and places agree, row by row."""
    catalog = read_intents(shared_data / "boston311_2011h2")
    # Their ids for ours, as they break ties in the area's week.
    theirs_by_title = {intent_id(title): f"{int(key):03d}" for key, title in catalog.names.items()}
    monkeypatch.setattr(boston311, "intent_id", lambda title: theirs_by_title[intent_id(title)])
    sample = shared_data / "boston311_raw" / "311_service_requests_2011_first6000.csv.gz"
    ours = contacts_table(read_cases(sample))
    theirs = read_contacts(shared_data / "boston311_2011h2")[1].slice(0, len(ours))
    ts = ours.column("ts").to_numpy()
    assert np.array_equal(ts, theirs.column("ts").to_numpy())
    # Cases of one second stand in another order there, so the others are compared line by line.
    _, first, counts = np.unique(ts, return_index=True, return_counts=True)
    alone = pa.array(np.sort(first[counts == 1]))
    ours, theirs = ours.take(alone), theirs.take(alone)
    assert len(ours) == 5842
    assert sum(count > 0 for count in ours.column("hist_n").to_pylist()) > 1000
    for name in sorted(set(ours.column_names) - {"sample_id", "user_id"}):
        mine, other = ours.column(name).to_pylist(), theirs.column(name).to_pylist()
        if name == "intent_id":
            other = [f"{int(value):03d}" for value in other]
        elif name.endswith("_intents") or name == "area_top_7d":
            other = [[f"{int(value):03d}" for value in values] for values in other]
        elif name == "street":  # they wrote VFW Pkwy as Vfw Pkwy
            mine, other = ([value and value.lower() for value in values] for values in (mine, other))
        assert mine == other, name
    users = set(zip(ours.column("user_id").to_pylist(), theirs.column("user_id").to_pylist(), strict=True))
    assert len({mine for mine, _ in users}) == len({other for _, other in users}) == len(users) > 4000


def test_the_sample_becomes_a_clean_dataset(shared_data, tmp_path):
    sample = shared_data / "boston311_raw" / "311_service_requests_2011_first6000.csv.gz"
    dataset = import_boston311(sample, tmp_path / "d", max_train=500)
    assert dataset.num_rows("train") == 500
    assert dataset.num_rows("test") == pytest.approx(0.1 * 3922, abs=5)
    report = check_dataset(dataset.path)
    assert report.exit_code == 0
    assert {finding.severity for finding in report.findings} <= {"warning"}


def test_splits_views_and_staff(raw, tmp_path):
    path = raw(text(month()))
    dataset = import_boston311(path, tmp_path / "d", valid_fraction=0.1, test_fraction=0.2)
    sizes = [dataset.num_rows(split) for split in ("train", "valid", "test")]
    assert sizes == [168, 24, 48]  # 240 residents
    times = [dataset.table(split)["ts"].to_pylist() for split in ("train", "valid", "test")]
    assert times[0][-1] < times[1][0]
    assert times[1][-1] < times[2][0]
    assert "staff" in {channel for row in dataset.table("test")["hist_channel"].to_pylist() for channel in row}
    assert dataset.catalog.ids == ("noise-complaint", "pothole-repair", "tree-removal")
    assert dataset.catalog.titles[0] == "Noise Complaint"
    assert check_dataset(dataset.path).findings == []
    few = import_boston311(path, tmp_path / "few", max_sessions=100)
    assert sum(few.num_rows(split) for split in ("train", "valid", "test")) == 100
    assert few.table("test")["session_id"].to_pylist()[-1] == dataset.table("test")["session_id"].to_pylist()[-1]
    assert (dataset.table("train")["region"].to_pylist()[0], dataset.table("train")["ward"].to_pylist()[0]) == (
        "South End",
        "4",
    )


def test_nothing_comes_from_the_future(raw):
    """The file cut after any case gives the same sessions up to there."""
    cases = month(120)
    whole = contacts_table(read_cases(raw(text(cases))))
    for size in (1, 37, 80, 119):
        cut = contacts_table(read_cases(raw(text(cases[:size]), "cut.csv")))
        assert cut.equals(whole.slice(0, size).cast(cut.schema))


def test_order_of_lines_and_packing_do_not_matter(raw):
    cases = month(60)
    plain = contacts_table(read_cases(raw(text(cases))))
    assert plain.equals(contacts_table(read_cases(raw(text(cases[::-1]), "packed.csv.gz"))))
    renamed = text(cases).replace("target_dt", "sla_target_dt", 1)
    assert plain.equals(contacts_table(read_cases(raw("\ufeff" + renamed, "newer.csv"))))


def test_broken_lines_are_left_out_and_logged(raw, caplog):
    broken = [case(1, "soon"), case(2, "2012-03-01 08:00:00", type=" "), case(3, "2012-03-01 09:00:00")]
    cases = read_cases(raw(text(broken) + "4,2012-03-01 10:00:00\n" + "5" + ",x" * 30 + "\n"))
    assert [entry["case_enquiry_id"] for entry in cases] == ["3"]
    assert "4 lines left out" in caplog.text


def test_what_is_refused(raw, tmp_path):
    with pytest.raises(DataError, match=r"required the columns of the city's 311 CSV; received no closed_dt"):
        import_boston311(raw("a,b\n1,2\n"), tmp_path / "d")
    with pytest.raises(DataError, match="required at least one case"):
        import_boston311(raw(text([])), tmp_path / "d")
    with pytest.raises(DataError, match="required at least one session of the view"):
        import_boston311(raw(text([case(1, "2012-03-01", source="Employee Generated")])), tmp_path / "d")
    with pytest.raises(DataError, match="no such file"):
        import_boston311(tmp_path / "nothing.csv", tmp_path / "d")
    with pytest.raises(DataError, match="required https://"):
        import_boston311("http://data.boston.gov/x.csv", tmp_path / "d")
    with pytest.raises(DataError, match="positive, below 1 together"):
        import_boston311(raw(text(month(60))), tmp_path / "d", valid_fraction=0.5, test_fraction=0.5)


@pytest.mark.parametrize(
    ("location", "street", "kind", "name"),
    [
        ("39 Lorraine St Roslindale MA 02131", "39 Lorraine St", "address", "Lorraine St"),
        ("3-11 Rutland Sq Boston MA", "3-11 Rutland Sq", "address", "Rutland Sq"),
        ("12A E Second St", "12A E Second St", "address", "E Second St"),
        ("INTERSECTION of A St & B St", "INTERSECTION A St & B St", "intersection", "A St"),
        ("1 City Hall Plz Boston MA 02108", "1 City Hall Plz", "none", ""),
        ("1010-1010 Massachusetts Ave Roxbury", "1010-1010 Massachusetts Ave", "none", ""),
        ("", "", "none", ""),
    ],
)
def test_places(location, street, kind, name):
    assert place_kind(location) == kind
    assert street_name(street, kind) == name


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("Case Closed Case Resolved filled 7/1", "closed:resolved"),
        ("Case Closed Case Scheduled Items have been scheduled for pickup.", "closed:scheduled"),
        ("Case Closed Internal Case Performed by Highway", "closed:internal work done"),
        ("Case Closed Duplicate of Existing Case", "closed:duplicate"),
        ("Case Closed VIOISS: Violation Filed", "closed:violation filed"),
        ("Case Closed. Closed date : 2011-07-05", "closed:closed"),
        ("", "closed:closed"),
    ],
)
def test_outcomes(reason, expected):
    assert outcome(reason) == expected
