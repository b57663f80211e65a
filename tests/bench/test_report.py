"""The report: every section from rows, nothing fetched, exponents that are the data's, a page that rows may refute."""

import re
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rgalign.bench import performance_page
from rgalign.bench.extrapolate import describe_extrapolation
from rgalign.bench.performance_page import PAGE, checked, rewritten
from rgalign.bench.report_fits import Curve, curves, fit, larger_half
from rgalign.bench.report_tables import TABLES, number
from rgalign.bench.result_rows import of, read_directory, read_rows
from rgalign.errors import DataError

Rows = list[dict[str, Any]]


def test_the_page_of_the_repository_says_what_its_rows_say() -> None:
    if not PAGE.is_file():
        pytest.skip("no checkout: docs/performance.md is not there")
    assert checked(PAGE.read_text(encoding="utf-8"), read_directory()) == []


@pytest.mark.parametrize("name", list(TABLES))
def test_a_table_that_says_otherwise_is_named(name: str, made_rows: Rows) -> None:
    page = f"before\n<!-- table: {name} -->\n<!-- end -->\nafter\n"
    assert checked(page, made_rows) == [name]
    good = rewritten(page, made_rows)
    assert good.startswith("before\n")
    assert good.endswith("after\n")
    assert "No rows yet" not in good
    assert checked(good, made_rows) == []
    assert rewritten(good, made_rows) == good
    digit = max(re.finditer(r"\d", good.partition("bench/results")[0]), key=lambda found: found.start())
    forged = good[: digit.start()] + str((int(digit[0]) + 1) % 10) + good[digit.end() :]
    assert checked(forged, made_rows) == [name]
    assert checked(good, []) == [name]


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("<!-- table: nosuch -->\n<!-- end -->", "required a table of"),
        ("<!-- table: engine -->\n", "each with its end"),
        ("no table", "at least once"),
    ],
)
def test_a_page_with_wrong_marks_is_refused(page: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        performance_page.checked(page, [])


def test_exponents_are_those_of_the_data() -> None:
    sizes = (10, 100, 1_000, 10_000)
    exact = fit(sizes, [3 * size**1.5 for size in sizes])
    assert exact.exponent == pytest.approx(1.5)
    assert exact.error == pytest.approx(0, abs=1e-6)
    assert exact.at(1e6) == pytest.approx(3e9)
    noise = np.random.default_rng(0).normal(0, 0.1, (400, len(sizes)))
    found = [fit(sizes, [size * np.exp(each) for size, each in zip(sizes, row, strict=True)]) for row in noise]
    told, seen = np.mean([each.error**2 for each in found]) ** 0.5, np.std([each.exponent for each in found])
    assert told == pytest.approx(seen, rel=0.15)
    assert np.isnan(fit(sizes[:2], [1, 2]).error)


def test_the_fixed_cost_of_a_call_hides_growth_only_among_small_sizes(made_rows: Rows) -> None:
    ours = next(each for each in curves(made_rows, "scaling: catalogue") if each.variant == "rgalign int8")
    assert ours.sizes == (1_000, 10_000, 100_000)
    sizes = tuple(10.0**power for power in range(6))
    costs = tuple(5 + 0.01 * size for size in sizes)
    floored = Curve("scaling: catalogue", "rgalign int8", "intents", sizes, costs, costs, costs)
    assert len(larger_half(floored)[0]) == 3
    assert fit(sizes, costs).exponent < 0.7 < fit(*larger_half(floored)).exponent < 1
    assert {each.variant for each in curves(made_rows, "data: encode")} == {"rgalign, by columns"}


def test_what_was_not_measured_is_called_extrapolated(made_rows: Rows) -> None:
    lines = list(describe_extrapolation(made_rows))
    assert len(lines) == 3
    assert all(line.startswith("Extrapolated, not measured") and "10,000,000" in line for line in lines)
    # 60 tokens a session; 100 tokens in 40 ms.
    assert f"{number(600e6 / 2_500 / 3_600)} hours" in lines[2]
    assert list(describe_extrapolation([])) == []


def test_numbers_have_three_digits() -> None:
    assert [number(value) for value in (0.01234, 1.234, 56.78, 1234.5, 0, None, float("nan"))] == [
        "0.0123", "1.23", "56.8", "1,234", "0", "–", "–"]  # fmt: skip


class Page(HTMLParser):
    """Tags that must be closed, identifiers and references of a page."""

    VOID = ("meta", "path", "use", "rect", "image", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: list[str] = []
        self.wanted: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id" and value:
                self.names.append(value)
            if name in ("href", "xlink:href", "src") and value:
                self.wanted.append(value)
            self.wanted += list(re.findall(r"url\((#[^)]+)\)", value or ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_report_is_whole_and_fetches_nothing(made_rows: Rows, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from rgalign.bench.report import SECTIONS, TITLES, write_report

    text = write_report(made_rows, tmp_path / "new").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert len(page.names) == len(set(page.names)), "two figures share an identifier"
    assert all(each.startswith("#") and each[1:] in page.names for each in page.wanted)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert "@import" not in text
    assert page.tags.count("svg") >= 8
    assert "No rows yet" not in text
    assert "Made &lt;up&gt;" in text
    assert "Made <up>" not in text
    assert all(escape(each[0]) in text for each in SECTIONS)
    assert set(TITLES) == set(TABLES)


def test_two_machines_are_never_mixed(made_rows: Rows, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from rgalign.bench.report import SECTIONS, write_report

    other = {"cpu": "Another", "cores": 64, "instructions": "avx2", "gpu": None}
    newer = [{**row, "hardware": other, "time": "2099-01-01T00:00:00+00:00"} for row in made_rows]
    newer = [row for row in newer if row["benchmark"] in ("engine", "engine waterfall")]
    waterfall = [row for row in newer if row["benchmark"] == "engine waterfall"]
    engine, steps = (f"<!-- table: {name} -->\n<!-- end -->" for name in ("engine", "waterfall"))
    assert rewritten(engine, [*made_rows, *newer[:1]]) == rewritten(engine, made_rows), "most, not newest"
    table = rewritten(steps, [*made_rows, *waterfall])
    assert "Another" in table, "the newest of equals"
    assert table.count("\n| ") == rewritten(steps, made_rows).count("\n| "), "one machine's lines"
    text = write_report([*made_rows, *newer], tmp_path).read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert len(page.names) == len(set(page.names)), "two figures share an identifier"
    newest, _, older = text.partition("id=m1>")
    assert "Another, 64 cores, avx2" in newest
    assert newest.count("<section id=m0") == len(SECTIONS), "of the newest machine also what has no rows"
    assert "Another, 64 cores" not in older
    assert "No rows yet" not in older
    just_engine = write_report([*newer, *of(made_rows, "engine")], tmp_path).read_text(encoding="utf-8")
    assert re.findall("<section id=m1s[0-9]", just_engine) == ["<section id=m1s1"], "of another only what it measured"


def test_a_section_without_rows_says_how_to_get_them(made_rows: Rows, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from rgalign.bench.report import write_report

    some = [row for row in made_rows if row["benchmark"] in ("batcher cost", "scaling: batch")]
    text = write_report(some, tmp_path / "new").read_text(encoding="utf-8")
    assert "<svg" in text
    assert write_report(some, tmp_path / "again").read_text(encoding="utf-8") == text, "other bytes of the same rows"
    assert "No rows yet: rgalign bench run engine" in text
    assert "rgalign submit" in text
    with pytest.raises(DataError, match="required result rows"):
        write_report([], tmp_path)


def test_lines_that_are_no_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with pytest.raises(DataError, match="no such file"):
        read_rows(path)
    for line in ('{"benchmark": "a"}\n{"bench', '{"benchmark": "a"}\n[1]', '{"benchmark": "a"}\n{"variant": "b"}'):
        path.write_text(line)
        with pytest.raises(DataError, match=r"rows\.jsonl:2"):
            read_rows(path)
