"""Evaluation end to end on a small dataset: figures, verdicts, slices, ceiling, the page, and refusals."""

import io
import json
import math
import re
from dataclasses import replace
from datetime import datetime, timedelta
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from rgalign.data.dataset import Dataset, DatasetWriter
from rgalign.errors import ConfigError, DataError, ProvenanceError
from rgalign.intents import IntentCatalog
from rgalign.metrics.ranking import session_metrics
from rgalign.schema import FeatureSchema
from rgalign.training.evaluate import EvaluationConfig, evaluate
from rgalign.training.plots import IntervalRow, Point, Series, interval_plot, line_plot, nice_step
from rgalign.training.report import print_comparison, report_page
from rgalign.training.report_html import distinct_metrics, metric_name, points
from rgalign.training.report_markdown import report_markdown
from rgalign.training.scores import RunScores, SplitScores, padded

SESSIONS, INTENTS = 400, 12
FEW = EvaluationConfig(resamples=400)
SCHEMA = {
    "name": "shop <b>",  # markup from data must come out as text
    "features": [
        {"kind": "categorical", "name": "channel", "dimension": "context", "vocabulary": "channels",
         "verbalize": "{value}"},
        {"kind": "categorical", "name": "email", "dimension": "profile", "vocabulary": "emails", "pii": True,
         "verbalize": "{value}"},
        {"kind": "sequence", "name": "visited", "dimension": "behaviour", "vocabulary": "pages", "max_length": 5,
         "verbalize": "Visited: {items}"},
    ],
    "vocabularies": {
        "channels": {"app": "App <script>", "web": "Web"},
        "emails": {"e": "secret@example.org"},
        "pages": {"p": "Orders"},
    },
}  # fmt: skip


def rows(split, count, rng, clicked):
    return pa.table(
        {
            "session_id": [f"{split}{n}" for n in range(count)],
            "user_id": [f"u{n // 2}" if n % 5 else None for n in range(count)],
            "ts": [datetime(2026, 1, 1) + timedelta(minutes=n) for n in range(count)],
            "region": list(rng.choice(["SG", "TW"], count)),
            "channel": list(rng.choice(["app", "web"], count)),
            "email": ["e"] * count,
            "visited": [["p"] if n % 3 else [] for n in range(count)],
            "candidates": [[]] * count,
            "clicked": [[f"i{row:02d}" for row in rows] for rows in clicked],
            "tier": [["gold", "silver", "tin"][n % 3] for n in range(count)],
            "amount": rng.random(count),
        }
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A simulated dataset with truth, and the score matrices of a strong and a weak ranker."""
    rng = np.random.default_rng(0)
    catalog = IntentCatalog(
        tuple(f"i{n:02d}" for n in range(INTENTS)), tuple(f"Intent & {n}" for n in range(INTENTS)), ("",) * INTENTS
    )
    probability = rng.dirichlet(np.full(INTENTS - 1, 0.3), SESSIONS)
    clicked = [sorted(set(rng.choice(INTENTS - 1, 2 if n % 4 == 0 else 1, p=p))) for n, p in enumerate(probability)]
    clicked[7] = [INTENTS - 1]  # never in train: cold
    path = tmp_path_factory.mktemp("evaluate") / "data"
    with DatasetWriter(path, FeatureSchema.model_validate(SCHEMA), catalog) as writer:
        others = [one[:1] for one in clicked[8:] + clicked[:7] + clicked[:1]]
        for split, labels in (("train", others), ("valid", others), ("test", clicked)):
            writer.write(split, rows(split, SESSIONS, rng, labels))
        order = np.argsort(-probability, axis=1)
        truth = {
            "session_id": [f"test{n}" for n in range(SESSIONS)],
            "noise": [False] * SESSIONS,
            "true_intents": [[f"i{row:02d}" for row in best[:8]] for best in order],
            "true_probs": [list(p[best[:8]]) for p, best in zip(probability, order, strict=True)],
            "rest_mass": [1 - p[best[:8]].sum() for p, best in zip(probability, order, strict=True)],
            "annotated": [[f"i{row:02d}" for row in rows] for rows in clicked],
            "click": [[f"i{row:02d}" for row in rows] for rows in clicked],
            "problem": ["trouble"] * SESSIONS,
        }
        writer.write("truth/test", pa.table(truth))
    logits = np.zeros((SESSIONS, INTENTS), np.float32)
    logits[:, :-1] = np.log(probability + 1e-3) / 10
    return Dataset.open(path), logits, padded(clicked)


def run(world, model, seed, noise, *, run_dir=None, parts=True):
    dataset, logits, clicked = world
    total = logits + noise * np.random.default_rng(seed).standard_normal(logits.shape).astype(np.float32)
    parts_of = (
        {"user_part": total * 0.7, "query_part": total * 0.3} if parts else {"user_part": None, "query_part": None}
    )
    provenance = {"catalog": dataset.catalog.hash, "dataset": dataset.fingerprint("test")}
    ids = tuple(f"test{n}" for n in range(SESSIONS))
    scores = SplitScores(ids, total, clicked=clicked, candidates=None, provenance=provenance, **parts_of)
    valid = replace(scores, session_ids=tuple(f"valid{n}" for n in range(SESSIONS)))
    return RunScores(model, seed, scores, valid, run_dir, 10.0)


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    made = []
    for model, noise in (("baseline", 0.3), ("qe rec", 0.1)):
        for seed in (0, 1):
            directory = tmp_path_factory.mktemp("run")
            lines = [{"epoch": e, "train_loss": 3 / e, "valid": {"ndcg@3": 0.1 * e}} for e in (1, 2, 3)]
            (directory / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            made.append(run(world, model, seed, noise, run_dir=directory, parts=model != "baseline"))
    return made


@pytest.fixture(scope="module")
def report(world, runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return evaluate(runs, world[0], out, "baseline", FEW), out


def test_means_are_those_of_the_metrics(report, world, runs):
    found, _ = report
    for model in found["models"]:
        own = [session_metrics(r.test.total, world[2]) for r in runs if r.model == model["model"]]
        for name, cell in model["metrics"].items():
            assert cell["mean"] == pytest.approx(np.mean([m.mean(name) for m in own]))
            assert cell["low"] < cell["mean"] < cell["high"]
            assert list(cell["seeds"].values()) == pytest.approx([m.mean(name) for m in own])


def test_the_better_ranker_is_called_better(report):
    baseline, better = report[0]["models"]
    assert (baseline["model"], baseline["against_baseline"]) == ("baseline", None)
    for name, cell in better["against_baseline"].items():
        expected = better["metrics"][name]["mean"] - baseline["metrics"][name]["mean"]
        assert cell["difference"] == pytest.approx(expected)
    assert better["against_baseline"]["ndcg@3"]["verdict"] == "better"
    assert better["against_baseline"]["ndcg@3"]["p_value"] < 0.01


def test_the_same_ranker_twice_is_inconclusive(world, tmp_path):
    twins = [run(world, "a", 0, 0.2), run(world, "b", 0, 0.2)]
    found = evaluate(twins, world[0], tmp_path, "a", FEW)
    assert {cell["verdict"] for cell in found["models"][1]["against_baseline"].values()} == {
        "inconclusive (interval spans zero)"
    }
    assert "inconclusive" in (tmp_path / "report.html").read_text()


def test_per_session_metrics_are_written(report, world, runs):
    table = pq.read_table(report[1] / "sessions" / "qe rec.parquet")
    assert len(table) == 2 * SESSIONS
    assert set(table.column("seed").to_pylist()) == {0, 1}
    expected = session_metrics(runs[2].test.total, world[2])
    np.testing.assert_array_equal(table.column("recall@3").to_numpy()[:SESSIONS], expected.values["recall@3"])
    np.testing.assert_array_equal(table.column("first_rank").to_numpy()[:SESSIONS], expected.first_rank)


def test_slices(report, world):
    slices = {(part["family"], part["name"]): part for part in report[0]["slices"]}
    families = [family for family, _ in slices]
    assert families[:4] == ["region", "region", "channel", "channel"]
    assert {"history", "intent frequency", "tier"} <= set(families)
    assert not {"email", "amount", "session_id", "user_id"} & set(families)  # constant, not a category, or an id
    assert ("intent frequency", "cold intents") not in slices  # too few sessions
    assert slices["tier", "gold"]["sessions"] == math.ceil(SESSIONS / 3)
    test = world[0].table("test", ["region"])
    assert slices["region", "SG"]["sessions"] == test.column("region").to_pylist().count("SG")
    cell = slices["region", "SG"]["models"]["qe rec"]
    assert cell["low"] < cell["mean"] < cell["high"]
    baseline = slices["region", "SG"]["models"]["baseline"]
    assert baseline["against_baseline"] is None
    assert cell["against_baseline"]["difference"] == pytest.approx(cell["mean"] - baseline["mean"])


def test_ceiling(report):
    ceiling = report[0]["ceiling"]
    for name, limits in ceiling["metrics"].items():
        share = ceiling["models"]["qe rec"][name]
        mean = next(m for m in report[0]["models"] if m["model"] == "qe rec")["metrics"][name]["mean"]
        assert limits["chance"] < mean
        assert share["share"]["mean"] == pytest.approx(mean / limits["ceiling"]["mean"])
        learnable = (mean - limits["chance"]) / (limits["ceiling"]["mean"] - limits["chance"])
        assert share["learnable_share"]["mean"] == pytest.approx(learnable)
        assert share["learnable_share"]["low"] < learnable < share["learnable_share"]["high"]
    # The ranking by true probabilities is the scores' own without noise, so it must beat both.
    assert ceiling["models"]["baseline"]["ndcg@3"]["share"]["high"] < 1


def test_slices_have_their_own_share_of_the_ceiling(report):
    found = report[0]
    whole = found["ceiling"]["metrics"]["ndcg@3"]["ceiling"]["mean"]
    parts = [part for part in found["slices"] if part["family"] == "channel"]
    assert sum(part["sessions"] for part in parts) == found["dataset"]["sessions"]
    mean = sum(part["sessions"] * part["ceiling"] for part in parts) / found["dataset"]["sessions"]
    assert mean == pytest.approx(whole)
    for part in found["slices"]:
        for cell in part["models"].values():
            assert cell["share"]["mean"] == pytest.approx(cell["mean"] / part["ceiling"])
            assert cell["share"]["low"] < cell["share"]["mean"] < cell["share"]["high"]
    assert "of the ceiling</span>" in report_page(found)


def test_noise_auc_is_shown_where_there_is_one(report):
    assert report[0]["noise_auc"] == {}
    assert "noise flag" not in report_page(report[0])
    found = report[0] | {"noise_auc": {"qe rec": [0.8, 0.9]}}
    assert "qe rec 0.850 (0.800 to 0.900)" in report_page(found)
    assert "Noise AUC of the confidence weights: qe rec 0.850 (0.800 to 0.900)." in report_markdown(found)


def test_reliability_and_curves(report):
    for entry in report[0]["reliability"]:
        assert entry["fitted"]["ece"]["mean"] < 0.2
        assert entry["learnt"]["scales"] == {"0": 10.0, "1": 10.0}
        assert sum(part["sessions"] for part in entry["learnt"]["bins"]) == 2 * SESSIONS
    assert [epoch["valid/ndcg@3"] for epoch in report[0]["curves"][0]["epochs"]] == pytest.approx([0.1, 0.2, 0.3])


def test_examples_show_slots_parts_and_no_personal_data(report, world, runs):
    examples = report[0]["examples"]
    assert len(examples) == 3
    for example in examples:
        position = int(example["session_id"].removeprefix("test"))
        answer = example["models"]["qe rec"]
        best = answer["recommended"][0]
        row = int(np.argmax(runs[2].test.total[position]))
        assert best["id"] == f"i{row:02d}"
        assert best["score"] == pytest.approx(best["user_part"] + best["query_part"], abs=1e-6)
        assert best["relevant"] == (row in world[2][position])
        assert any("App" in slot["text"] or "Web" in slot["text"] for slot in example["slots"])
    assert "secret@example.org" not in json.dumps(report[0])


class Page(HTMLParser):
    """Tags in order, and the text outside of style."""

    VOID = frozenset({"meta", "br", "line", "circle", "polyline"})

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.text, self.attributes = [], [], "", []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_page_is_whole_self_contained_and_escaped(report):
    page = (report[1] / "report.html").read_text()
    parsed = Page(page)
    assert not parsed.open
    assert parsed.tags.count("svg") == 5  # slices, two learning curves, two reliability plots
    assert not {"script", "img", "link", "iframe"} & set(parsed.tags)
    assert not any(name in ("src", "href") or name.startswith("on") for name, _ in parsed.attributes)
    assert "url(" not in page
    assert "shop <b>" in parsed.text
    assert "App <script>" in parsed.text
    for title in ("Comparison", "Seeds", "Share of the ceiling", "Slices (NDCG@3)", "Learning curves", "Method"):
        assert title in parsed.text
    assert "nan" not in parsed.text.lower().split()


def test_markdown_has_every_model_slice_and_share(report):
    found, out = report
    lines = (out / "report.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("|")]
    first = next(row for row in rows if row[0] == "NDCG@3")
    assert first[2].startswith(points(found["models"][0]["metrics"]["ndcg@3"]["mean"]))
    other = next(row for row in rows[rows.index(first) + 1 :] if row[1].startswith("qe rec"))
    change = found["models"][1]["against_baseline"]["ndcg@3"]
    assert other[3].startswith(points(change["difference"], sign=True))
    assert other[4] == "better"
    assert sum(row[0].startswith("channel: ") for row in rows) == 4  # differences, and shares of the ceiling
    assert any(row[2] == "ceiling of NDCG@3" and "baseline, share of it" in row for row in rows)
    assert any(row[:2] == ["metric", "ceiling"] and "baseline, share of it" in row for row in rows)
    assert "nan" not in " ".join(lines).lower()


def test_json_is_the_report_without_nan(report):
    text = (report[1] / "report.json").read_text()
    assert json.loads(text) == report[0]
    assert not re.search(r"\bNaN\b|Infinity", text)
    assert report_page(json.loads(text)) == (report[1] / "report.html").read_text()


def test_one_run_of_one_model(world, tmp_path):
    alone = replace(run(world, "a", 0, 0.2), valid=None, logit_scale=None)
    found = evaluate([alone], world[0], tmp_path, "a", FEW)
    assert found["reliability"] == found["curves"] == []
    assert found["models"][0]["metrics"]["ndcg@3"]["seed_sd"] is None
    page = Page((tmp_path / "report.html").read_text())
    assert page.tags.count("svg") == 1
    assert "Seeds" not in page.text.split("Method")[0]


def test_console_table_fits_eighty_columns(report):
    console = Console(width=80, file=io.StringIO(), color_system=None)
    print_comparison(report[0], console)
    text = console.file.getvalue()
    cell = report[0]["models"][1]["against_baseline"]["ndcg@3"]
    assert f"{points(cell['difference'], sign=True)} [{points(cell['low'], sign=True)}, " in text
    assert "better" in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_clicked_labels_when_asked_for(world, tmp_path):
    assert evaluate([run(world, "a", 0, 0.2)], world[0], tmp_path, "a", FEW)["dataset"]["labels"] == "annotated"
    clicked = EvaluationConfig(resamples=50, labels="clicked", clusters="session", slice_columns=("tier",))
    found = evaluate([run(world, "a", 0, 0.2)], world[0], tmp_path, "a", clicked)
    assert (found["dataset"]["labels"], found["dataset"]["users"]) == ("clicked", None)
    assert {part["family"] for part in found["slices"]} == {"history", "intent frequency", "tier"}


def test_sessions_may_be_scored_in_another_order(world, runs, report, tmp_path):
    back = np.arange(SESSIONS)[::-1]
    turned = []
    for one in runs:
        test = one.test
        parts = {
            name: None if getattr(test, name) is None else getattr(test, name)[back]
            for name in ("user_part", "query_part")
        }
        ids = tuple(reversed(test.session_ids))
        test = replace(test, session_ids=ids, total=test.total[back], clicked=test.clicked[back], **parts)
        turned.append(replace(one, test=test))
    found = evaluate(turned, world[0], tmp_path, "baseline", FEW)
    for before, after in zip(report[0]["slices"], found["slices"], strict=True):
        assert after["sessions"] == before["sessions"]
        assert after["models"]["qe rec"]["mean"] == pytest.approx(before["models"]["qe rec"]["mean"])


def narrow(test):
    """Scores of a catalogue with one intent less."""
    return replace(test, total=test.total[:, :-1], user_part=None, query_part=None, clicked=test.clicked * 0)


def changed(one, **changes):
    return replace(one, test=replace(one.test, **changes))


@pytest.mark.parametrize(
    ("second", "error", "message"),
    [
        (lambda r: replace(r, model="../evil"), ConfigError, "a name of letters"),
        (lambda r: replace(r, seed=0, model="baseline"), ConfigError, "each model and seed once"),
        (lambda r: changed(r, provenance={"catalog": "0" * 64}), ProvenanceError, "scores of this catalog"),
        (lambda r: changed(r, provenance={"dataset": "0" * 64}), ProvenanceError, "scores of this dataset"),
        (
            lambda r: replace(r, test=narrow(r.test)),
            ProvenanceError,
            f"scores of {INTENTS} intents; received {INTENTS - 1}",
        ),
        (lambda r: changed(r, session_ids=tuple(reversed(r.test.session_ids))), DataError, "sessions of the first run"),
        (lambda r: changed(r, clicked=r.test.clicked[::-1]), DataError, "candidates and clicks of the first run"),
        (lambda r: changed(r, total=r.test.total * np.nan), DataError, "no NaN"),
    ],
)  # fmt: skip
def test_refuses(world, runs, tmp_path, second, error, message):
    with pytest.raises(error, match=message):
        evaluate([runs[0], second(runs[2])], world[0], tmp_path, "baseline", FEW)


def test_refuses_an_unknown_baseline_metric_session_or_label(world, runs, tmp_path):
    dataset = world[0]
    with pytest.raises(ConfigError, match="one of baseline, qe rec; received 'other'"):
        evaluate(runs, dataset, tmp_path, "other", FEW)
    with pytest.raises(ConfigError, match=r"primary: required one of auc, .*; received ndcg@7"):
        evaluate(runs, dataset, tmp_path, "baseline", EvaluationConfig(primary="ndcg@7"))
    unknown = changed(runs[0], session_ids=(*runs[0].test.session_ids[:-1], "elsewhere"))
    with pytest.raises(DataError, match="no session 'elsewhere'"):
        evaluate([unknown], dataset, tmp_path, "baseline", FEW)


def test_metric_names_and_points():
    assert [metric_name(n) for n in ("auc", "recall@3", "hit_rate@1", "ndcg@5", "mrr_all")] == [
        "GAUC", "Recall@3", "HitRate@1", "NDCG@5", "MRR (all)",
    ]  # fmt: skip
    assert (points(0.5271), points(-0.001, sign=True), points(None)) == ("52.71", "\N{MINUS SIGN}0.10", "n/a")


def test_equal_metrics_are_shown_once():
    def cell(mean):
        return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}

    models = [
        {"metrics": {"recall@1": cell(0.5), "hit_rate@1": cell(0.5), "ndcg@1": cell(0.5)}},
        {"metrics": {"recall@1": cell(0.6), "hit_rate@1": cell(0.6), "ndcg@1": cell(0.7)}},
    ]
    assert distinct_metrics({"metrics": ["recall@1", "hit_rate@1", "ndcg@1"], "models": models}) == [
        "recall@1",
        "ndcg@1",
    ]


def test_plots_take_degenerate_data():
    flat = Series("a", "#000", (Point(1, 0.5, 0.5, 0.5),))
    for svg in (
        line_plot([flat], "x", "y & z"),
        interval_plot([IntervalRow("h"), IntervalRow("r", "9", (("#000", 0, 0, 0),))], "d"),
    ):
        assert svg.startswith("<svg")
        assert "nan" not in svg
    assert "y &amp; z" in line_plot([flat], "x", "y & z")
    assert [nice_step(step) for step in (0.1, 0.11, 3, 7, 10)] == pytest.approx([0.1, 0.2, 5, 10, 10])
