"""The simulator: the same bits for any number of workers, calibrated truth, labels that no column gives away."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from rgalign.data.check import check_dataset
from rgalign.data.dataset import Dataset
from rgalign.data.simulator import SimulatorConfig, Truth, ceilings, read_truth, simulate
from rgalign.data.simulator.catalogue import build_knowledge_base
from rgalign.data.simulator.evidence import Evidence
from rgalign.data.simulator.features import build_schema
from rgalign.data.simulator.grammar import NUM_ORDER_PROBLEMS, NUM_PROBLEMS, PROBLEMS
from rgalign.errors import ConfigError, DataError

CONFIG = SimulatorConfig(num_sessions=6000, num_intents=400, num_cold_intents=30, sessions_per_shard=2048, seed=7)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("simulated") / "data"
    simulate(CONFIG, path, workers=1, progress=False)
    return path


@pytest.fixture(scope="module")
def dataset(path: Path) -> Dataset:
    return Dataset.open(path)


@pytest.fixture(scope="module")
def truths(path: Path) -> dict[str, Truth]:
    return {split: read_truth(path, split) for split in ("train", "valid", "test")}


def files(path: Path) -> dict[str, pa.Table]:
    return {str(file.relative_to(path)): pq.ParquetFile(file).read() for file in sorted(path.rglob("*.parquet"))}


def test_two_workers_write_what_one_writes(path: Path, tmp_path: Path) -> None:
    simulate(CONFIG, tmp_path / "again", workers=2, progress=False)
    first, second = files(path), files(tmp_path / "again")
    assert len(first) == 1 + 2 * (3 + 1 + 1)  # catalogue; rows and truth of train, valid, test
    assert first.keys() == second.keys()
    for name, table in first.items():
        assert table.equals(second[name]), name
    for name in ("schema.yaml", "simulator.json"):
        assert (path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_another_seed_is_another_world(path: Path, tmp_path: Path) -> None:
    simulate(CONFIG.model_copy(update={"seed": 8, "num_sessions": 500}), tmp_path / "b", workers=1, progress=False)
    other = Dataset.open(tmp_path / "b")
    assert other.catalog.hash != Dataset.open(path).catalog.hash
    assert (
        other.table("train", ["clicked"])["clicked"][0] != Dataset.open(path).table("train", ["clicked"])["clicked"][0]
    )


def test_what_exists_is_not_overwritten(path: Path) -> None:
    with pytest.raises(DataError, match="required a path that is free"):
        simulate(CONFIG, path, workers=1, progress=False)


def test_sizes_of_splits_and_shards(dataset: Dataset) -> None:
    assert sum(dataset.num_rows(split) for split in ("train", "valid", "test")) == CONFIG.num_sessions
    assert dataset.num_rows("test") == CONFIG.num_sessions // 5
    assert [len(dataset.shards(split)) for split in ("train", "valid", "test")] == [3, 1, 1]
    assert len(dataset.catalog) == CONFIG.num_intents


def test_splits_follow_each_other_in_time(dataset: Dataset) -> None:
    ends = []
    for split in ("train", "valid", "test"):
        ts = dataset.table(split, ["ts"])["ts"].to_numpy()
        assert (np.diff(ts) >= np.timedelta64(0)).all()
        ends += [ts[0], ts[-1]]
    assert ends == sorted(ends)
    assert (ends[-1] - ends[0]) / np.timedelta64(1, "D") == pytest.approx(35, abs=0.2)


def test_eighty_nine_features_of_all_kinds_and_dimensions() -> None:
    schema = build_schema()
    assert len(schema.features) == 89
    assert {feature.kind for feature in schema.features} == {"categorical", "numerical", "sequence", "group"}
    assert {feature.dimension for feature in schema.features} == {"profile", "behaviour", "context"}
    spoken = [feature for feature in schema.features if feature.verbalize is not None]
    assert 15 <= len(spoken) <= 22
    assert schema.features[: len(spoken)] == tuple(spoken)


def test_every_row_keeps_the_schema(path: Path) -> None:
    report = check_dataset(path)
    assert report.num_rows == {"train": 4286, "valid": 514, "test": 1200}
    assert report.num_bad == 0, report.text()
    assert report.exit_code == 0, report.text()


def test_prompts_are_short_and_read_well(dataset: Dataset) -> None:
    rows = dataset.table("test").slice(0, 200).to_pylist()
    texts = [", ".join(slot.text for slot in dataset.schema.slots(row)) for row in rows]
    assert 30 < np.mean([len(text.split()) for text in texts]) < 80
    assert all(text.startswith("Entry Point: ") for text in texts)
    assert not any("Unknown" in text for text in texts)


def test_histories_lie_in_the_past_newest_first(dataset: Dataset) -> None:
    table = dataset.table("train")
    for feature in dataset.schema.features:
        if feature.kind == "group":
            assert feature.age is not None
            for ages in table[feature.age].to_pylist()[:1000]:
                assert all(age >= 0 for age in ages)
                assert ages == sorted(ages)
                assert len(ages) <= feature.max_length


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_probabilities_and_the_rest_are_one(truths: dict[str, Truth], split: str) -> None:
    truth = truths[split]
    np.testing.assert_allclose(truth.probabilities.sum(axis=1, dtype=np.float64) + truth.rest_mass, 1.0, atol=1e-5)
    assert (np.diff(truth.probabilities, axis=1) <= 0).all()
    assert truth.probabilities.shape[1] == 64
    assert ((truth.intents >= 0) == (truth.probabilities > 0)).all()
    listed = [row[row >= 0] for row in truth.intents]
    assert all(len(set(row.tolist())) == len(row) for row in listed)
    assert 0.001 < truth.rest_mass.mean() < 0.1


def test_truth_is_calibrated(truths: dict[str, Truth]) -> None:
    """Of the intents given share q, the relevant share is q: the posterior is the process's own, not an estimate."""
    truth = truths["train"]
    counts = (truth.annotated >= 0).sum(axis=1)
    hit = (truth.intents[:, :, None] == truth.annotated[:, None, :]).any(axis=2) & (truth.intents >= 0)
    share = hit / counts[:, None]
    edges = [0.001, 0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 1.0]
    for low, high in pairwise(edges):
        inside = (truth.probabilities >= low) & (truth.probabilities < high)
        expected, observed = truth.probabilities[inside].mean(), share[inside].mean()
        error = share[inside].std() / np.sqrt(inside.sum())
        assert inside.sum() > 100
        assert abs(observed - expected) < 4.5 * error, (low, high, expected, observed)
    ceiling = ceilings(truth)
    assert ceiling["recall@3"] == pytest.approx(ceiling["expected_recall@3"], abs=0.03)
    assert 0.55 < ceiling["recall@3"] < 0.8
    assert ceilings(truth, 1)["recall@1"] < ceiling["recall@3"] <= ceiling["hit_rate@3"]


def test_truth_knows_that_fresh_troubles_come_back(dataset: Dataset, truths: dict[str, Truth]) -> None:
    """Calibration where histories matter most; a truth without them expects a fifth less than happens."""
    path = np.asarray(dataset.catalog.extra["path"])
    error: list[float] = []
    for split, truth in truths.items():
        table = dataset.table(split, ["contact_intent", "contact_hours"]).to_pylist()
        fresh = [i for i, row in enumerate(table) if row["contact_hours"] and row["contact_hours"][0] < 48]
        last = path[[dataset.catalog.rows[table[i]["contact_intent"][0]] for i in fresh]][:, None]
        relevant = truth.annotated[fresh]
        observed = ((path[relevant] == last) & (relevant >= 0)).sum(axis=1) / (relevant >= 0).sum(axis=1)
        assert observed.mean() > 0.1
        error += (observed - (truth.probabilities[fresh] * (path[truth.intents[fresh]] == last)).sum(axis=1)).tolist()
    assert abs(np.mean(error)) < 4 * np.std(error) / np.sqrt(len(error))


def test_likelihood_is_that_of_the_tables_traces_are_drawn_from() -> None:
    evidence, rng = Evidence(), np.random.default_rng(0)
    problem, order = rng.integers(0, NUM_ORDER_PROBLEMS, 40), rng.integers(0, 2, 40)
    traces = evidence.draw(rng, problem, order)

    def log_share(cumulative: np.ndarray, row: int, value: int) -> float:
        return float(np.log(np.diff(np.append(0.0, np.minimum(cumulative[row], 1.0)))[value]))

    def definition(i: int, p: int, k: int) -> float:
        total = log_share(evidence._entry, k * NUM_PROBLEMS + p, traces.entry_point[i] - 1)
        total += log_share(evidence._event, p, traces.app_event[i]) + log_share(
            evidence._focus, k, traces.order_focus[i]
        )
        for page in traces.page[traces.page_offsets[i] : traces.page_offsets[i + 1]]:
            total += log_share(evidence._page, p, page - 1)
        for article in traces.article[traces.article_offsets[i] : traces.article_offsets[i + 1]]:
            total += log_share(evidence._article, p, article - 1)
        return total

    expected = [[[definition(i, p, k) for p in (0, 30, NUM_PROBLEMS - 1)] for k in (0, 1)] for i in range(40)]
    computed = evidence.log_likelihood(traces)[:, :, [0, 30, NUM_PROBLEMS - 1]]
    np.testing.assert_allclose(computed, expected, atol=2e-3)  # shares are differences of float32 sums
    assert np.std(expected) > 1


def test_cold_intents_are_born_in_the_last_week(dataset: Dataset, truths: dict[str, Truth], path: Path) -> None:
    cold = set(json.loads((path / "simulator.json").read_text())["cold_intents"])
    assert len(cold) == CONFIG.num_cold_intents
    for split in ("train", "valid"):
        table = dataset.table(split, ["clicked", "contact_intent"])
        seen = {intent for name in table.column_names for intent in pc.unique(pc.list_flatten(table[name])).to_pylist()}
        assert not cold & seen
        assert not cold & {dataset.catalog.ids[row] for row in np.unique(truths[split].intents) if row >= 0}
    clicked = dataset.table("test", ["clicked"])["clicked"]
    share = np.mean([bool(cold & set(row)) for row in clicked.to_pylist()])
    assert 0.02 < share < 0.2
    assert len(cold & set(pc.list_flatten(clicked).to_pylist())) > 10


def test_noise_clicks_are_as_frequent_as_asked_and_wrong(truths: dict[str, Truth]) -> None:
    noise = np.concatenate([truth.noise for truth in truths.values()])
    assert noise.mean() == pytest.approx(CONFIG.noise_rate, abs=0.025)
    for truth in truths.values():
        right = (truth.click[:, :1] == truth.annotated).any(axis=1)
        assert (right == ~truth.noise).all()


def test_noise_depends_on_what_is_seen(dataset: Dataset, truths: dict[str, Truth]) -> None:
    entry = dataset.table("train", ["entry_point"])["entry_point"].to_numpy()
    names = dataset.schema.vocabulary("entry_point").names
    rate = {names[str(value)]: truths["train"].noise[entry == value].mean() for value in np.unique(entry)}
    assert rate["Home Page"] > 1.5 * rate["Order Details"]


def test_annotators_correct_the_clicks_of_the_last_week_only(dataset: Dataset, truths: dict[str, Truth]) -> None:
    for split, shown in (("train", "click"), ("valid", "click"), ("test", "annotated")):
        rows = [
            [dataset.catalog.rows[intent] for intent in row]
            for row in dataset.table(split, ["clicked"])["clicked"].to_pylist()
        ]
        expected = [[int(row) for row in line if row >= 0] for line in getattr(truths[split], shown)]
        assert rows == expected
    several = (truths["test"].annotated[:, 1] >= 0).mean()
    assert 0.1 < several < 0.35


def test_labels_have_a_long_tail(dataset: Dataset) -> None:
    clicked = pc.list_flatten(dataset.table("train", ["clicked"])["clicked"])
    counts = np.sort(np.unique(clicked.to_numpy(zero_copy_only=False), return_counts=True)[1])[::-1] / len(clicked)
    assert counts[:40].sum() > 0.3  # a tenth of the catalogue
    assert counts[200:].sum() < 0.25  # its second half
    assert len(counts) > 200


def test_no_single_column_gives_the_label_away(dataset: Dataset) -> None:
    """The best guess per value of any one column stays far below the ceiling (0.36 at rank 1)."""
    train, test = dataset.table("train"), dataset.table("test")
    label = np.asarray([dataset.catalog.rows[row[0]] for row in train["clicked"].to_pylist()])
    wanted = [{dataset.catalog.rows[intent] for intent in row} for row in test["clicked"].to_pylist()]
    recalls = {}
    for name in set(train.column_names) - {"clicked", "candidates", "ts", "session_id", "user_id"}:
        values = np.asarray([str(value) for table in (train, test) for value in table[name].to_pylist()])
        place = np.unique(values, return_inverse=True)[1]
        seen = np.zeros((place.max() + 1, len(dataset.catalog)), np.int32)
        np.add.at(seen, (place[: len(label)], label), 1)
        guess = seen.argmax(axis=1)[place[len(label) :]]
        recalls[name] = np.mean([row in want for row, want in zip(guess.tolist(), wanted, strict=True)])
    assert 0.03 < recalls["order_status"] < max(recalls.values()) + 1e-9 < 0.2, recalls


def test_a_repeat_of_the_last_contact_is_possible_but_rare(dataset: Dataset) -> None:
    table = dataset.table("test", ["clicked", "contact_intent"]).to_pylist()
    repeats = [row["contact_intent"][0] in row["clicked"] for row in table if row["contact_intent"]]
    assert 0.02 < np.mean(repeats) < 0.4


def test_truth_follows_the_sessions_asked_for(dataset: Dataset, truths: dict[str, Truth]) -> None:
    ids = np.asarray(dataset.table("test", ["session_id"])["session_id"].to_pylist())
    assert (truths["test"].session_ids == ids).all()
    backwards = truths["test"].aligned(ids[::-1])
    assert (backwards.intents == truths["test"].intents[::-1]).all()
    with pytest.raises(DataError, match="required every session; received no 'nobody'"):
        truths["test"].aligned(np.asarray(["nobody"]))
    with pytest.raises(DataError, match="required a simulated dataset's truth"):
        read_truth(dataset.path / "train", "test")


def test_the_catalogue_is_text_rich_and_without_repeats(dataset: Dataset) -> None:
    titles = dataset.catalog.titles
    assert len(set(titles)) == len(titles)
    assert np.mean([len(text.split()) for text in dataset.catalog.descriptions]) > 15
    assert len(set(dataset.catalog.extra["path"])) == len(PROBLEMS)
    assert len(set(dataset.catalog.extra["topic"])) >= 10


def test_largest_catalogue() -> None:
    base = build_knowledge_base(SimulatorConfig(num_intents=8000, num_cold_intents=400))
    assert len(base.catalog) == 8000
    assert base.cold.sum() == 400


def test_more_cold_intents_than_the_catalogue_has_room_for_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_cold_intents: required at most 41 of 200 intents"):
        build_knowledge_base(SimulatorConfig(num_intents=200, num_cold_intents=50))
