"""Running suites: rows of finished steps only, nothing done twice, failures told, and suites that are really there."""

import ast
import importlib
import json
import os
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from rgalign.bench import suites
from rgalign.bench.rows import ROOT
from rgalign.bench.suites import SUITES, Place, Step, Suite, missing, run_suites
from rgalign.bench.suites_table import describe_suites
from rgalign.cli import app
from rgalign.errors import ConfigError

# A step's command: writes a row, then does what its first argument says.
SCRIPT = """
import sys
from pathlib import Path
what, out = sys.argv[1], Path(sys.argv[sys.argv.index("--out") + 1])
print("measuring", what)
if what != "nothing":
    with open(out, "a") as stream:
        stream.write('{"benchmark": "made", "what": "%s"}\\n' % what)
if what == "fail":
    sys.exit("no such engine")
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Two suites of made-up steps, and where they leave things."""
    (tmp_path / "made_step.py").write_text(SCRIPT)
    execute = suites.execute

    def in_place_of_ours(command: list[str], tell: suites.Tell) -> str | None:
        return execute([sys.executable, str(tmp_path / "made_step.py"), *command[3:]], tell)

    made = {
        "good": Suite("a", (Step("one", "a", "good.jsonl", ("x",), ("tiny",)), Step("two", "a", "good.jsonl", ("y",)))),
        "bad": Suite("b", (Step("broken", "b", "bad.jsonl", ("fail",)), Step("empty", "b", "bad.jsonl", ("nothing",)))),
    }
    monkeypatch.setattr(suites, "SUITES", made)
    monkeypatch.setattr(suites, "execute", in_place_of_ours)
    monkeypatch.setattr(suites, "source_hash", lambda: "sources")
    return Place(tmp_path / "results", tmp_path / "work")


def measured(path: Path) -> list[str]:
    return [json.loads(line)["what"] for line in path.read_text().splitlines()]


def test_rows_are_kept_and_what_is_done_is_not_done_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    found = run_suites(["good"], "standard", said.append, place=place)
    assert [(each.name, each.rows, each.error) for each in found] == [
        ("good/one/standard", 1, None),
        ("good/two/standard", 1, None),
    ]
    assert measured(place.results / "good.jsonl") == ["x", "y"]
    assert "[1/2] good: one" in said
    assert "  measuring x" in said
    assert [each.rows for each in run_suites(["good"], "standard", said.append, place=place)] == [None, None]
    assert measured(place.results / "good.jsonl") == ["x", "y"]
    run_suites(["good"], "standard", said.append, again=True, place=place)
    assert measured(place.results / "good.jsonl") == ["x", "y"] * 2
    monkeypatch.setattr(suites, "source_hash", lambda: "others")
    run_suites(["good"], "standard", said.append, place=place)
    assert measured(place.results / "good.jsonl") == ["x", "y"] * 3


def test_quick_rows_stay_out_of_the_results(place: Place) -> None:
    run_suites(["good"], "quick", lambda line: None, place=place)
    assert measured(place.work / "quick" / "good.jsonl") == ["tiny", "y"]
    assert not place.results.exists()


def test_a_failed_step_leaves_no_row_and_stops_no_other(place: Place) -> None:
    said: list[str] = []
    found = run_suites(["all"], "standard", said.append, place=place)
    assert [each.rows for each in found] == [1, 1, 0, 0]
    assert "exit code 1" in str(found[2].error)
    assert "no such engine" in str(found[2].error)
    assert "wrote no row" in str(found[3].error)
    assert any("failed after" in line for line in said)
    assert not (place.results / "bad.jsonl").exists()
    # It is tried again; what an earlier try wrote before it failed is not in the way.
    assert run_suites(["bad"], "standard", said.append, place=place)[0].error is not None


def test_an_interrupted_run_goes_on_where_it_was(place: Place) -> None:
    def stop_at_two(line: str) -> None:
        if "two" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_suites(["good"], "standard", stop_at_two, place=place)
    found = run_suites(["good"], "standard", lambda line: None, place=place)
    assert [each.rows for each in found] == [None, 1]
    assert measured(place.results / "good.jsonl") == ["x", "y"]


@pytest.mark.parametrize("names", [[], ["nosuch"], ["kernels", "nosuch"]])
def test_unknown_suites_are_refused(names: list[str]) -> None:
    with pytest.raises(ConfigError, match="required suites: all, kernels"):
        suites.chosen(names)


def test_the_suites_are_those_of_the_issue_and_their_scripts_take_their_arguments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = {"kernels", "scoring", "engine", "batcher", "tokenizer", "towers", "end_to_end", "training", "data"}
    assert asked <= set(SUITES)
    for suite in SUITES.values():
        assert missing(suite) == []
        for step in suite.steps:
            source = ast.parse((ROOT / "bench" / f"{step.module}.py").read_text(encoding="utf-8"))
            options = {node.value for node in ast.walk(source) if isinstance(node, ast.Constant)}
            for effort in ("quick", "standard", "full"):
                given = [*step.arguments(effort), "--out"]  # type: ignore[arg-type]
                assert {each for each in given if each.startswith("--")} <= options, (step.module, given)


def test_sources_decide_whether_a_step_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in suites.SOURCES:
        (tmp_path / folder).mkdir()
    file = tmp_path / "csrc" / "a.cpp"
    file.write_text("1")
    monkeypatch.setattr(suites, "ROOT", tmp_path)
    before = suites.source_hash()
    os.utime(file, (0, 0))
    (tmp_path / "bench" / "rows.jsonl").write_text("{}")
    assert suites.source_hash() == before
    file.write_text("2")
    assert suites.source_hash() != before


def test_the_list_says_when_a_suite_was_last_done(tmp_path: Path) -> None:
    place = Place(tmp_path, tmp_path)
    for step in SUITES["batcher"].steps:
        place.note_done(f"batcher/{step.name}/standard", {"seconds": 60.0, "at": "2026-11-23T10:00:00+00:00"})
    place.note_done("data/embed/standard", {"seconds": 60.0, "at": "2026-11-23T10:00:00+00:00"})
    console = Console(width=160)
    with console.capture() as captured:
        console.print(describe_suites(place))
    lines = {line.split()[0]: line for line in captured.get().splitlines() if line.strip()}
    assert "standard 2026-11-23T10:00, 3.0 min" in lines["batcher"]
    assert "never" in lines["data"], "one of two steps is not the suite"


def test_the_command_refuses_what_contradicts_itself() -> None:
    told = CliRunner().invoke(app, ["bench", "run", "scoring", "--quick", "--full"])
    assert isinstance(told.exception, ConfigError)
    told = CliRunner().invoke(app, ["bench", "report"])
    assert isinstance(told.exception, ConfigError)


@pytest.mark.parametrize("name", sorted({step.module for suite in SUITES.values() for step in suite.steps}))
def test_every_script_can_be_imported(name: str) -> None:
    pytest.importorskip("threadpoolctl")
    assert callable(importlib.import_module(f"rgalign.bench.{name}").main)
