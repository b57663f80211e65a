"""The arranged service lines: a made-up source of the same form, and the real ones where they are at hand."""

import csv
import gzip
from datetime import datetime, timedelta

import numpy as np
import pytest

from rgalign.data.check import check_dataset
from rgalign.data.sources.arranged import import_arranged
from rgalign.errors import DataError

HEADER = (
    "sample_id,ts,week,split,intent_id,internal,account,channel,user_id,place_kind,street,neighborhood,zipcode,ward,"
    "precinct,police_district,council_district,fire_district,pw_district,hour,dow,hist_n,hist_intents,hist_hours,"
    "hist_status,hist_channel,street_intents,street_hours,area_top_7d,post_case_title"
)
COLUMNS = next(csv.reader([HEADER]))
WEEKS, PER_WEEK = 20, 30


@pytest.fixture
def source(tmp_path):
    """20 weeks of 30 contacts; every third is the staff's, every second an account's."""
    rows = []
    for number in range(WEEKS * PER_WEEK):
        ts = datetime(2011, 7, 1) + timedelta(hours=number * 7 * 24 / PER_WEEK)
        row = dict.fromkeys(COLUMNS, "")
        row |= {"sample_id": number, "ts": ts.isoformat(), "week": number // PER_WEEK, "intent_id": number % 2}
        row |= {"split": "test" if number // PER_WEEK == WEEKS - 1 else "train", "post_case_title": "The answer"}
        row |= {"internal": int(number % 3 == 0), "account": int(number % 2 == 0 and number % 3 > 0)}
        row |= {
            "channel": "Self Service",
            "place_kind": "address",
            "street": f"S{number % 90}",
        }
        late = number // PER_WEEK >= 18  # the wide split's test weeks know a place that training does not
        row |= {"zipcode": "02210" if late else "02119", "neighborhood": "Seaport" if late else "Roxbury"}
        row |= {"hour": ts.hour, "dow": ts.weekday(), "hist_n": number % 3, "user_id": "u1"}
        row["hist_intents"] = "|".join("10"[: number % 3])
        row["hist_hours"] = "|".join(["1.5", "40.0"][: number % 3])
        row["hist_status"] = "|".join(["open", "closed:resolved"][: number % 3])
        row["hist_channel"] = "|".join(["call", "web"][: number % 3])
        row["area_top_7d"] = "1|0"
        rows.append(row)
    directory = tmp_path / "source"
    directory.mkdir()
    with gzip.open(directory / "samples.csv.gz", "wt", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    (directory / "intents.csv").write_text(
        "intent_id,title,reason,subject,path,aliases,n_train\n"
        "0,Pick Up,Waste,Works,Works > Waste > Pick Up,,7\n1,Lamp,Light,Works,Works > Light > Lamp,Bulb | Pole,3\n"
    )
    return directory


def test_a_row_as_it_arrives(source, tmp_path):
    dataset = import_arranged(source, tmp_path / "d")
    row = dataset.table("train").to_pylist()[1]
    assert (row["session_id"], row["user_id"], row["region"], row["clicked"]) == ("2", "u1", "Roxbury", ["0"])
    assert row["candidates"] == row["street_intents"] == []
    assert row["hist_intents"] == ["1", "0"]
    assert row["hist_hours"] == [1.5, 40.0]
    assert row["police_district"] is None
    assert (row["hist_n"], row["week"], row["account"]) == (2, 0, "yes")
    assert "The answer" not in str(dataset.table("train").to_pylist())
    slots = ", ".join(slot.text for slot in dataset.schema.slots(row))
    assert slots == (
        "Place: Address, Channel: Website, Neighborhood: Roxbury, "
        "Frequent Requests In The Area This Week: ('Lamp', 'Pick Up'), Time: Friday, 11:00, "
        "Earlier Requests At This Place: ('Lamp' 1 hour ago open, 'Pick Up' 40 hours ago resolved)"
    )
    assert dataset.catalog.text(1) == {
        "title": "Lamp",
        "description": "Also: Bulb; Pole",
        "path": "Works > Light > Lamp",
    }
    assert check_dataset(dataset.path).exit_code == 0


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, (18 * 20, 20, 20)),
        ({"split": "wide"}, (17 * 20, 20, 2 * 20)),
        ({"view": "accounts"}, (18 * 10, 10, 10)),
        ({"view": "all", "max_train": 50}, (50, 20, 20)),
    ],
)
def test_views_and_splits(source, tmp_path, options, sizes):
    dataset = import_arranged(source, tmp_path / "d", **options)
    assert tuple(dataset.num_rows(split) for split in ("train", "valid", "test")) == sizes


def test_max_train_keeps_the_latest(source, tmp_path):
    whole = import_arranged(source, tmp_path / "whole").table("train")["session_id"].to_pylist()
    few = import_arranged(source, tmp_path / "few", max_train=50).table("train")["session_id"].to_pylist()
    assert few == whole[-50:]


def test_vocabularies_come_from_training_rows(source, tmp_path):
    """A street needs ten training rows; what the prompt shows is the same in every view and split."""
    wide = import_arranged(source, tmp_path / "wide", split="wide")
    assert wide.schema.vocabularies["street"] == {}  # about four rows each
    assert wide.schema.vocabularies["zipcode"] == {"02119": "02119"}  # not 02210, which 30 test rows have
    assert wide.schema.vocabularies["neighborhood"] == {"Roxbury": "Roxbury"}
    assert wide.table("test")["zipcode"].to_pylist().count("02210") > 20
    few = import_arranged(source, tmp_path / "few", view="accounts", max_train=5)
    assert few.schema.vocabularies["zipcode"] == {}
    for name in ("channel", "place_kind", "neighborhood", "hist_status"):
        assert wide.schema.vocabularies[name] == few.schema.vocabularies[name] != {}


def test_what_is_refused(source, tmp_path):
    for options, message in (
        ({"view": "staff"}, "required residents, accounts or all; received 'staff'"),
        ({"split": "random"}, "required readme or wide"),
        ({"max_train": 0}, "required at least 1"),
    ):
        with pytest.raises(DataError, match=message):
            import_arranged(source, tmp_path / "d", **options)
    with gzip.open(source / "samples.csv.gz", "rt") as file:
        text = file.read()
    with gzip.open(source / "samples.csv.gz", "wt") as file:
        file.write(text.replace("1.5|40.0", "1.5|soon"))
    with pytest.raises(DataError, match=r"column hist_hours: required list<.*soon"):
        import_arranged(source, tmp_path / "d")
    with pytest.raises(DataError, match="no such file"):
        import_arranged(tmp_path, tmp_path / "d")


@pytest.mark.parametrize(
    ("name", "view", "split", "sizes"),
    [
        ("boston311_2011h2", "residents", "wide", (27767, 1473, 6949)),
        ("boston311_2011h2", "residents", "readme", (33181, 1463, 1545)),
        ("boston311_2011h2", "accounts", "wide", (21268, 1125, 5219)),
        ("boston311_2011h2", "accounts", "readme", (25404, 1138, 1070)),
        ("sp156_2020", "all", "readme", (40368, 2084, 2655)),
    ],
)
def test_the_real_ones(shared_data, tmp_path, name, view, split, sizes):
    """Sizes are those of the sources' READMEs: 34,644 and 26,542 training rows, valid taken off their end."""
    dataset = import_arranged(shared_data / name, tmp_path / "d", view=view, split=split)
    assert tuple(dataset.num_rows(part) for part in ("train", "valid", "test")) == sizes
    table = dataset.table("train", ["hist_intents", "hist_hours", "clicked"])
    ages = table["hist_hours"].combine_chunks().values.to_numpy()
    assert ages.min() >= 0
    assert len(ages) == len(table["hist_intents"].combine_chunks().values)
    assert np.mean([len(row) > 0 for row in table["hist_intents"].to_pylist()]) > 0.3
