"""A user's own file to a proposed schema."""

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from rgalign.data.infer import infer_schema, write_proposal
from rgalign.data.personal import personal_reason
from rgalign.errors import DataError
from rgalign.schema import FeatureSchema

COUNT = 200


def columns():
    rows = range(COUNT)
    return {
        "session_id": [f"s{row}" for row in rows],
        "entry_page": [("home", "cart", "orders")[row % 3] for row in rows],
        "order_count": [row % 40 for row in rows],
        "spend": [float(row**3) for row in rows],
        "zip": [f"0{2100 + row % 7}" for row in rows],
        "contact": [f"user{row}@example.com" for row in rows],
        "note": [f"please call me back about case {row}" for row in rows],
        "constant": ["x"] * COUNT,
        "branch_code": [f"0{row % 5}" for row in rows],
        "clicked": [["refund", "voucher"][row % 2 :] for row in rows],
        "past_intents": [["refund", "voucher", "refund"][: row % 4] for row in rows],
        "past_hours": [[0.5, 30.0, 400.25][: row % 4] for row in rows],
        "tags": [["a", "b", "c", "d"][: row % 5] for row in rows],
    }


@pytest.fixture
def parquet(tmp_path):
    pq.write_table(pa.table(columns()), tmp_path / "mine.parquet")
    return tmp_path / "mine.parquet"


def by_name(proposal):
    return {feature.name: feature for feature in proposal.schema.features}


def test_kinds_from_parquet(parquet):
    proposal = infer_schema(parquet)
    features = by_name(proposal)
    kinds = {name: feature.kind for name, feature in features.items()}
    assert kinds == {
        "entry_page": "categorical",
        "order_count": "numerical",
        "spend": "numerical",
        "zip": "categorical",
        "contact": "categorical",
        "branch_code": "categorical",
        "past": "group",
        "tags": "sequence",
    }
    assert proposal.schema.name == "mine"
    assert set(proposal.schema.vocabularies["entry_page"]) == {"home", "cart", "orders"}
    assert (features["spend"].transform, features["order_count"].transform) == ("identity", "identity")
    assert {"note", "constant", "ts", "region"} <= set(proposal.left_out)
    assert "free text" in proposal.left_out["note"]


def test_coupled_columns_become_a_group(parquet):
    group = by_name(infer_schema(parquet))["past"]
    assert [member.name for member in group.members] == ["past_intents", "past_hours"]
    assert group.members[0].vocabulary == "intents"  # its values are those that were clicked
    assert (group.age, group.members[1].unit, group.max_length) == ("past_hours", "hours", 3)
    assert group.item == "'{past_intents}' {past_hours} ago"


def test_one_row_of_another_length_uncouples(parquet):
    values = columns()
    values["past_hours"][3] = [1.0]
    pq.write_table(pa.table(values), parquet)
    features = by_name(infer_schema(parquet))
    assert features["past_intents"].kind == "sequence"
    assert "past" not in features


def test_personal_columns_are_flagged_and_not_copied(parquet, tmp_path):
    proposal = infer_schema(parquet)
    for name in ("zip", "contact"):
        assert by_name(proposal)[name].pii
        assert proposal.schema.vocabularies[name] == {}
    assert not by_name(proposal)["entry_page"].pii
    proposal.write(tmp_path / "schema.yaml")
    assert "@example.com" not in (tmp_path / "schema.yaml").read_text()


@pytest.mark.parametrize(
    ("name", "values", "personal"),
    [
        ("EmailAddress", [], True),
        ("street_name", [], True),
        ("street_intents", [], False),
        ("product_name", ["Lamp"], False),
        ("firstName", [], True),
        ("contact", ["+44 20 7946 0958", "(617) 555-0100", "617-555-0100"], True),
        ("place", ["39 Lorraine St", "12A E Second Street"], True),
        ("host", ["10.0.0.1", "192.168.1.9"], True),
        ("hours", ["10.5", "2011", "123456"], False),
        ("when", ["2011-07-01", "2011-07-02"], False),
    ],
)
def test_what_looks_personal(name, values, personal):
    assert (personal_reason(name, pa.array(values, pa.string())) is not None) == personal


def test_joined_strings_and_leading_zeros_from_csv(tmp_path):
    values = columns()
    for name in ("clicked", "past_intents", "past_hours", "tags"):
        values[name] = ["|".join(map(str, row)) for row in values[name]]
    csv.write_csv(pa.table(values), tmp_path / "mine.csv")
    proposal = infer_schema(tmp_path / "mine.csv", name="shop")
    features = by_name(proposal)
    assert features["past"].kind == "group"
    assert features["past"].age == "past_hours"
    assert features["tags"].kind == "sequence"
    assert "strings joined by '|'" in proposal.reasons["tags"]
    assert set(proposal.schema.vocabularies["branch_code"]) == {"00", "01", "02", "03", "04"}
    assert proposal.schema.name == "shop"


def test_the_written_file_loads_and_explains_itself(parquet, tmp_path):
    proposal = infer_schema(parquet)
    path = tmp_path / "out" / "schema.yaml"
    proposal.write(path)
    assert FeatureSchema.load(path) == proposal.schema
    text = path.read_text()
    assert "# 3 different values, 3 of them at least twice\n- kind: categorical\n  name: entry_page" in text
    assert "# left out: constant: always the same value" in text


def test_edits_are_not_overwritten(parquet, tmp_path):
    out = tmp_path / "schema.yaml"
    said = write_proposal(parquet, out)
    assert "8 features, 2 of them look personal" in said
    assert "left out    constant: always the same value" in said
    with pytest.raises(DataError, match="required a file that does not exist"):
        write_proposal(parquet, out)


def test_prose_with_commas_is_not_a_sequence(tmp_path):
    rows = [f"well, it is {row}, and late" for row in range(5)] * 40
    pq.write_table(pa.table({"said": rows, "n": list(range(COUNT))}), tmp_path / "x.parquet")
    assert by_name(infer_schema(tmp_path / "x.parquet"))["said"].kind == "categorical"


def test_files_that_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        infer_schema(tmp_path / "none.csv")
    (tmp_path / "x.txt").write_text("a\n1\n")
    with pytest.raises(DataError, match="required a name ending in"):
        infer_schema(tmp_path / "x.txt")
    pq.write_table(pa.table({"a": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    with pytest.raises(DataError, match="required at least one row"):
        infer_schema(tmp_path / "empty.parquet")
    pq.write_table(pa.table({"session_id": ["a"], "x": ["same"]}), tmp_path / "useless.parquet")
    with pytest.raises(DataError, match="required at least one column that can be a feature"):
        infer_schema(tmp_path / "useless.parquet")
