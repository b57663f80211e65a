"""The report of the benchmarks: one self-contained HTML page of the rows, with plots, tables and fitted exponents."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from itertools import chain
from pathlib import Path

from rgalign.bench.extrapolate import describe_extrapolation
from rgalign.bench.report_plots import (
    Drawn,
    apart,
    engines,
    growths,
    latency_throughput,
    rooflines,
    scorers,
    waterfalls,
)
from rgalign.bench.report_tables import TABLES, none_yet, number
from rgalign.bench.result_rows import Row, by_machine, latest, machine, of
from rgalign.errors import DataError
from rgalign.files import write_atomic
from rgalign.training.report_style import CSS

NAME = "report.html"
MORE_CSS = """
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr)); }
.plots figure { min-width: 0; }
.plots svg { width: 100%; }
figure .note { margin: 4px 0 0; }
h3 { margin: 22px 0 8px; }
nav { margin-top: 18px; font-size: 14px; }
nav p { margin: 6px 0; }
h2.machine { margin: 56px 0 0; font-size: 26px; }
nav a { color: #0b63c5; text-decoration: none; margin-right: 16px; white-space: nowrap; }
.card { border-top-color: #1b7837; }
@media (max-width: 640px) { main { padding: 24px 16px 48px; } }
"""

MEASURED = re.compile("<svg|<table")  # what a section without rows has none of

Figures = Callable[[Sequence[Row]], Iterable[Drawn]]

# Title, tables above each other, figures, and the suites that rows come from.
SECTIONS: tuple[tuple[str, tuple[str, ...], tuple[Figures, ...], str], ...] = (
    ("Services under load", ("end_to_end", "load"), (latency_throughput,), "end_to_end"),
    ("The reasoner's engine", ("engine", "waterfall"), (waterfalls, engines), "engine"),
    ("Against the machine's limits", (), (rooflines,), "kernels scaling"),
    ("How cost grows", ("exponents",), (growths,), "scaling training data"),
    ("Scoring and top-k", ("scoring", "topk"), (scorers,), "scoring kernels"),
    ("The batcher", ("batcher", "overload"), (), "batcher"),
    ("Contexts and towers", ("tokenizer", "towers"), (), "tokenizer towers"),
    ("Training and data", ("training", "alignment", "data", "embedding"), (), "training data"),
)
TITLES = {
    "end_to_end": "Offered load and latency",
    "load": "Load on rgalign serve",
    "engine": "Engines beside each other",
    "waterfall": "Technique by technique",
    "exponents": "Fitted exponents: time = c · size^a",
    "scoring": "Scoring a catalogue",
    "topk": "Top-k of dense scores",
    "batcher": "What a request costs",
    "overload": "Overload",
    "tokenizer": "Contexts to token ids",
    "towers": "Towers and scores",
    "training": "Training steps",
    "alignment": "Alignment steps of the upper layers",
    "data": "Simulating and encoding",
    "embedding": "Embedding, with and without sharing",
}


def write_report(rows: Sequence[Row], out: Path) -> Path:
    """Writes ``out/report.html``.

    Raises:
        DataError: there are no rows.
    """
    if not rows:
        raise DataError(where="bench report", required="result rows (rgalign bench run all)", received="none")
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / NAME, page(rows).encode())
    return out / NAME


def page(rows: Sequence[Row]) -> str:
    """The page. Everything from rows is escaped; there is no script and nothing is fetched."""
    links, body = "", ""
    for place, (name, found) in enumerate(by_machine(rows).items()):
        shown = sections(found, f"m{place}", with_empty=place == 0)
        inside = " ".join(f"<a href=#{each}>{escape(title)}</a>" for each, (title, _) in shown.items())
        links += f"<p><a href=#m{place}>{escape(name)}</a>{inside}</p>"
        body += f"<h2 class=machine id=m{place}>{escape(name)}</h2>{''.join(html for _, html in shown.values())}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>rgalign benchmarks</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}{MORE_CSS}</style></head>'
        f"<body><main>{header(rows)}<nav>{links}</nav>{body}{method()}</main></body></html>\n"
    )


def sections(rows: Sequence[Row], machine_: str, *, with_empty: bool) -> dict[str, tuple[str, str]]:
    """Identifier -> title and HTML of one machine's sections; ``with_empty``: also of those without rows."""
    found = {f"{machine_}s{place}": (each[0], section(rows, f"{machine_}s{place}", *each))
             for place, each in enumerate(SECTIONS)}  # fmt: skip
    return {name: each for name, each in found.items() if with_empty or MEASURED.search(each[1])}


def header(rows: Sequence[Row]) -> str:
    machines = sorted({machine(row) for row in rows})
    times = sorted(str(row.get("time"))[:10] for row in rows)
    gpus = sorted({str(row["hardware"]["gpu"]) for row in rows if (row.get("hardware") or {}).get("gpu")})
    measured = f"GPU: {', '.join(gpus) or 'none measured'}"
    facts = [f"{len(rows):,} rows", f"{times[0]} to {times[-1]}", *machines, measured]
    cards = "".join(
        f"<div class=card><h3>{escape(title)}</h3><p class=big>{escape(value)}</p>"
        f"<p class=interval>{escape(note)}</p></div>"
        for title, value, note in headlines(rows)
    )
    return (
        "<header><p class=eyebrow>rgalign benchmarks</p><h1>How fast, beside what, on which machine</h1>"
        f"<p class=facts>{escape(' · '.join(facts))}</p></header><div class=cards>{cards}</div>"
    )


def headlines(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """The best known numbers, each with where it holds; those without rows are left out."""
    found = []
    engine = [row for row in latest(of(rows, "engine")) if row["variant"] == "rgalign int8a12"]
    if engine:
        row = max(engine, key=lambda row: float(row["speedup"]["median"]))
        where = f"{row['template']}, {row['B']} prompts, {row['threads']} threads"
        value = f"×{number(row['speedup']['median'])}"
        found.append(("Engine, 8-bit weights", value, f"over transformers fp32, whole prompt: {where}, {cpu(row)}"))
    verdicts = [row for row in latest(of(rows, "end_to_end verdict")) if row.get("capacity_ratio")]
    for row in verdicts[:1]:
        against = f"capacity of FastAPI + transformers + FAISS, template {row['template']}, {cpu(row)}"
        found.append(("Whole service", f"×{number(row['capacity_ratio'])}", against))
    grid = {"N": 5_000, "B": 1, "D": 128, "catalogue": "random"}
    for row in latest(of(rows, "scoring", variant="rgalign int8", **grid))[-1:]:
        found.append(("Scoring 5,000 intents", f"{number(row['call_us']['median'])} µs",
                      f"one session, D = 128, {row['threads']} threads, exact, {cpu(row)}"))  # fmt: skip
    for row in latest(of(rows, "batcher cost", variant="rgalign submit"))[-1:]:
        found.append(
            ("Batcher", f"{number(row['cpu_us_per_request']['median'])} µs", f"process CPU a request, {cpu(row)}")
        )
    return found


def cpu(row: Row) -> str:
    return str((row.get("hardware") or {}).get("cpu"))


def section(
    rows: Sequence[Row], name: str, title: str, tables: Sequence[str], draw: Sequence[Figures], suites: str
) -> str:
    """Args: name: its identifier, and the beginning of those inside."""
    figures = "".join(figure(each, name) for each in chain.from_iterable(one(rows) for one in draw))
    body = f"<div class=plots>{figures}</div>" if figures else ""
    for each in tables:
        table = TABLES[each](rows)
        shown = f"<p class=note>{escape(none_yet(each).replace('`', ''))}</p>" if table is None else table.html()
        body += f"<h3>{escape(TITLES[each])}</h3>{shown}"
    if title == "How cost grows":
        body += "".join(f"<p class=note>{escape(line)}</p>" for line in describe_extrapolation(rows))
    if not body:
        body = f"<p class=note>No rows yet: rgalign bench run {escape(suites)}.</p>"
    return f"<section id={name}><h2>{escape(title)}</h2>{body}</section>"


def figure(each: Drawn, section_: str) -> str:
    caption = f"<p class=note>{escape(each.caption)}</p>" if each.caption else ""
    return f"<figure><figcaption>{escape(each.title)}</figcaption>{apart(each.svg, section_)}{caption}</figure>"


def method() -> str:
    facts = (
        "Variants are timed in turn (A B C A B C …) in one run; values are medians with percentiles 20 and 80.",
        "Answers are checked before anything is timed; a variant that answers otherwise stops the suite.",
        "A number is a line of bench/results/*.jsonl, with commit, versions, hardware, clock and load.",
        "Of a cell that was measured several times the latest is shown; rows of two machines are never mixed.",
        "A commit with + had changes that were not committed. The machine is shared: read ratios first.",
    )
    lines = "".join(f"<li>{escape(fact)}</li>" for fact in facts)
    return f"<section><h2>Method</h2><ul>{lines}</ul></section>"
