"""Table 5 from exposure logs: a planted effect is found, A/A is not, a mismatch or an unreliable judge stops it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from rgalign.cli import app
from rgalign.config import load_config, parse_config
from rgalign.data.dataset import Dataset
from rgalign.errors import ConfigError, DataError
from rgalign.metrics.online.experiment import STOPPED
from rgalign.training.tables.online_markdown import print_online
from rgalign.training.tables.table5 import UNVALIDATED, run_table5
from rgalign.training.tables.table5_config import Table5Config
from rgalign.training.tables.tables_status import tables_status

Serve = Callable[[Callable[[int, dict[str, Any]], Any]], AbstractContextManager[Any]]
Values = Callable[..., dict[str, Any]]
LIFT = 0.12  # of the share of sessions whose true intent stands in the top three


def write_log(path: Path, dataset: Dataset, *, users: int = 2000, lift: float = LIFT, share: float = 0.5) -> Path:
    """Sessions of users; each has a true intent, shown among the first three or not, and says its title."""
    rng = np.random.default_rng(11)
    ids, names = list(dataset.catalog.ids), dataset.catalog.names
    lines = []
    for user in range(users):
        treated = rng.random() < share
        for number in range(rng.integers(1, 4)):
            true = int(rng.integers(len(ids)))
            others = [ids[each] for each in rng.permutation(len(ids)) if each != true]
            found = rng.random() < 0.4 + lift * treated
            shown = [*others[:1], ids[true], *others[1:3]] if found else [*others[:3], ids[true]]
            clicked = [ids[true]] if rng.random() < 0.8 else []
            lines.append(
                {
                    "session_id": f"s{user}-{number}",
                    "user_id": f"u{user}",
                    "arm": "new" if treated else "old",
                    "shown": shown,
                    "clicked": clicked,
                    "rating": "good" if rng.random() < 0.7 else "bad",
                    "transcript": f"user: I need help with {names[ids[true]]}\nagent: done",
                }
            )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def write_labels(path: Path, log: Path, dataset: Dataset, *, wrong: float) -> Path:
    """People's labels of the first sessions: what was said, and some other intent in a share of them."""
    rng = np.random.default_rng(5)
    of_title = {title: each for each, title in dataset.catalog.names.items()}
    lines = []
    for line in log.read_text().splitlines()[:120]:
        row = json.loads(line)
        title = row["transcript"].partition("help with ")[2].partition("\n")[0]
        intent = str(rng.choice(list(dataset.catalog.ids))) if rng.random() < wrong else of_title[title]
        lines.append({"session_id": row["session_id"], "intent": intent})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def hears_titles(replies: SimpleNamespace) -> Callable[[int, dict[str, Any]], Any]:
    """A judge that finds the entry which the transcript names."""

    def answer(number: int, body: dict[str, Any]) -> Any:
        text = body["messages"][1]["content"]
        title = text.partition("help with ")[2].partition("\n")[0]
        found = re.search(rf"^(\d+)\. {re.escape(title)}$", text, re.MULTILINE)
        return replies.spoken(found.group(1) if found else "0")

    return answer


@pytest.fixture(scope="module")
def dataset(loop_values: Values) -> Dataset:
    return Dataset.open(loop_values()["dataset"])


@pytest.fixture
def values(dataset: Dataset, tmp_path: Path) -> Values:
    def make(url: str | None = None, **changes: Any) -> dict[str, Any]:
        log = changes.pop("log", None) or write_log(tmp_path / "log.jsonl", dataset)
        test = {"name": "New vs Old", "log": str(log), "control": "old", "treatment": "new"}
        plain: dict[str, Any] = {"dataset": str(dataset.path), "experiments": [test], "resamples": 300}
        if url is not None:
            server = {"kind": "openai", "name": "judge", "base_url": url, "model": "m", "api_key_env": None}
            plain["judge"] = {"server": server}
        return {**plain, **changes}

    return make


def make_table(values: dict[str, Any], out: Path) -> dict[str, Any]:
    return dict(run_table5(parse_config(Table5Config, values, where="test"), out, progress=False))


def test_a_planted_effect_is_found_with_its_size_and_csat_is_not_touched(
    values: Values, dataset: Dataset, serve: Serve, replies: SimpleNamespace, tmp_path: Path
) -> None:
    log = write_log(tmp_path / "log.jsonl", dataset)
    labels = write_labels(tmp_path / "labels.jsonl", log, dataset, wrong=0.1)
    with serve(hears_titles(replies)) as server:
        given = values(server.url, log=log, labels=str(labels))
        table = make_table(given, tmp_path / "out")
        asked = len(server.requests)
        assert asked == len(dataset.catalog)  # equal transcripts are one
        assert make_table(given, tmp_path / "out") == table
        assert len(server.requests) == asked
    test = table["experiments"][0]
    hits = test["metrics"]["ihr@3"]
    assert hits["verdict"] == "better"
    assert hits["low"] < LIFT < hits["high"]
    assert hits["relative"]["mean"] == pytest.approx(hits["treatment"]["mean"] / hits["control"]["mean"] - 1)
    assert test["metrics"]["ctr@3"]["verdict"] == "better"
    assert test["metrics"]["csat"]["verdict"].startswith("inconclusive")
    assert test["metrics"]["csat"]["guardrail"]["margin"] == 0.01
    agreement = table["judge"]["agreement"]
    assert agreement["validated"]
    assert agreement["sessions"] == 120
    assert agreement["kappa"]["low"] < 0.9 < agreement["kappa"]["high"] + 0.05
    assert [row.state for row in tables_status(tmp_path / "out")] == ["done", "done"]
    text = (tmp_path / "out/table5/out/table.md").read_text()
    assert "| A/B test | CSAT | CTR@3 | IHR@3 |" in text
    assert "Cohen's kappa" in text
    assert "cost 0" in text
    svg = ElementTree.fromstring((tmp_path / "out/table5/out/forest.svg").read_text())
    assert len(list(svg.iter("{http://www.w3.org/2000/svg}circle"))) == 4
    console = Console(width=80, record=True, file=io.StringIO())
    print_online(table, console)
    shown = console.export_text()
    assert "CTR@3" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_without_an_effect_there_is_none_and_a_mismatch_stops_the_conclusion(
    values: Values, dataset: Dataset, tmp_path: Path
) -> None:
    same = write_log(tmp_path / "same.jsonl", dataset, lift=0.0)
    # How often an A/A test is called significant is measured in test_online_arms.py; here it must not be by far.
    found = make_table(values(log=same, level=0.999), tmp_path / "same")["experiments"][0]["metrics"]
    assert {cell["verdict"].partition(" ")[0] for cell in found.values()} == {"inconclusive"}
    assert set(found) == {"csat", "ctr@3", "clicks_per_place@3"}  # no judge, no IHR

    uneven = write_log(tmp_path / "uneven.jsonl", dataset, share=0.62)
    table = make_table(values(log=uneven), tmp_path / "uneven")
    test = table["experiments"][0]
    assert test["sample_ratio"]["mismatch"]
    assert {cell["verdict"] for cell in test["metrics"].values()} == {STOPPED}
    assert test["metrics"]["csat"]["guardrail"]["verdict"] is None
    text = (tmp_path / "uneven/table5/out/table.md").read_text()
    assert "**mismatch**" in text
    assert "better" not in text
    console = Console(width=80, record=True, file=io.StringIO())
    print_online(table, console)
    assert "MISMATCH: no conclusion" in console.export_text()


def test_a_judge_that_people_disagree_with_does_not_conclude_and_the_other_metrics_do(
    values: Values, dataset: Dataset, serve: Serve, replies: SimpleNamespace, tmp_path: Path
) -> None:
    log = write_log(tmp_path / "log.jsonl", dataset)
    labels = write_labels(tmp_path / "labels.jsonl", log, dataset, wrong=0.8)
    with serve(hears_titles(replies)) as server:
        given = values(server.url, log=log, labels=str(labels))
        table = make_table(given, tmp_path / "out")
        assert not table["judge"]["agreement"]["validated"]
        assert table["experiments"][0]["metrics"]["ihr@3"]["verdict"] == UNVALIDATED
        assert table["experiments"][0]["metrics"]["ctr@3"]["verdict"] == "better"
        given["judge"]["min_kappa"] = 0.0  # another threshold asks nobody again
        asked = len(server.requests)
        again = make_table(given, tmp_path / "out")
        assert again["experiments"][0]["metrics"]["ihr@3"]["verdict"] == "better"
        assert len(server.requests) == asked


def test_ihr_counts_the_sample_and_kappa_the_labels(
    values: Values, dataset: Dataset, serve: Serve, replies: SimpleNamespace, tmp_path: Path
) -> None:
    log = write_log(tmp_path / "log.jsonl", dataset, users=300)
    labels = write_labels(tmp_path / "labels.jsonl", log, dataset, wrong=0.2)
    with serve(hears_titles(replies)) as server:
        given = values(server.url, log=log, labels=str(labels))
        given["judge"]["max_sessions"] = 50
        table = make_table(given, tmp_path / "out")
    hits = table["experiments"][0]["metrics"]["ihr@3"]
    assert hits["control"]["total"] + hits["treatment"]["total"] == 50
    assert table["judge"]["agreement"]["sessions"] == 120
    sessions = table["experiments"][0]["sessions"]
    judged = table["experiments"][0]["judged_share"]
    assert sum(count * share for count, share in zip(sessions, judged, strict=True)) == pytest.approx(50)


def test_unclear_sessions_are_misses_unless_they_are_left_out(
    values: Values, dataset: Dataset, serve: Serve, replies: SimpleNamespace, tmp_path: Path
) -> None:
    hears = hears_titles(replies)
    first = next(iter(dataset.catalog.names.values()))

    def answer(number: int, body: dict[str, Any]) -> Any:
        return replies.spoken("0") if f"help with {first}\n" in body["messages"][1]["content"] else hears(number, body)

    with serve(answer) as server:
        miss = make_table(values(server.url), tmp_path / "out")["experiments"][0]["metrics"]["ihr@3"]
        skip = make_table(values(server.url, unclear="skip"), tmp_path / "out")["experiments"][0]["metrics"]["ihr@3"]
        assert len(server.requests) == len(dataset.catalog)
    assert skip["control"]["total"] < miss["control"]["total"]
    assert skip["control"]["mean"] > miss["control"]["mean"]


def test_the_experiment_s_configuration_is_sound() -> None:
    config = load_config(Table5Config, Path(__file__).parents[3] / "bench/experiments/table5.yaml")
    assert config.metric_names == ("csat", "ctr@3", "ihr@3", "clicks_per_place@3")


def test_command_and_refusals(values: Values, dataset: Dataset, tmp_path: Path) -> None:
    import yaml

    given = values()
    file = tmp_path / "table5.yaml"
    file.write_text(yaml.safe_dump(given))
    arguments = ["tables", "5", "--config", str(file), "-o", str(tmp_path / "out")]
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False).output
    assert "Online A/B tests" in shown
    assert "split as expected" in shown
    labels = {**given, "labels": "x"}
    repeated = {**given, "experiments": given["experiments"] * 2}
    one_arm = {**given, "experiments": [{**given["experiments"][0], "treatment": "old"}]}
    for wrong, message in (
        (labels, "a judge to compare them with"),
        (repeated, "different names"),
        (one_arm, "two arms"),
        ({**given, "guardrails": {"ihr@3": 0.1}}, "of csat, ctr@3"),
        ({**given, "ks": [0]}, "at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_config(Table5Config, wrong, where="test")
    missing = {**given, "experiments": [{**given["experiments"][0], "log": str(tmp_path / "none.jsonl")}]}
    with pytest.raises(DataError, match="no such file"):
        make_table(missing, tmp_path / "missing")
