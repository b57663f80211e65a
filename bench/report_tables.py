"""Tables of result rows, the same for the report page and docs/performance.md: rows in, cells of text out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from rgalign.bench.report_fits import SCALED, curves, fit, larger_half
from rgalign.bench.result_rows import Row, by_machine, latest, machine, of

MINUS = "\N{MINUS SIGN}"
DIM = 128  # of the vectors whose scoring the table shows


@dataclass(frozen=True)
class Table:
    """Cells of text; ``sources``: the rows it was made of, for the line below."""

    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    sources: tuple[Row, ...]

    def markdown(self) -> str:
        left = "|" + "---|" + "---:|" * (len(self.columns) - 1)
        escaped = [[cell.replace("|", "\\|") for cell in cells] for cells in (self.columns, *self.lines)]
        body = [f"| {' | '.join(cells)} |" for cells in escaped]
        return "\n".join([body[0], left, *body[1:], "", source_line(self.sources)])

    def html(self) -> str:
        head = "".join(f"<th>{escape(name)}</th>" for name in self.columns)
        lines = "".join(
            f"<tr><th>{escape(first)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in rest)}</tr>"
            for first, *rest in self.lines
        )
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
        return f"<div class=scroll>{table}</div><p class=note>{escape(source_line(self.sources))}</p>"


def source_line(rows: Sequence[Row]) -> str:
    """Where the numbers are, and of what machine, commits and days."""
    files = ", ".join(sorted({f"bench/results/{row['file']}" for row in rows}))
    commits = sorted({str(row.get("commit")) for row in rows})
    days = sorted({str(row.get("time"))[:10] for row in rows})
    machines = sorted({machine(row) for row in rows})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"{files}; commit {', '.join(commits)}; {'; '.join(machines)}; {when}"


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, thousands parted: 0.0123, 1.23, 12.3, 12,345."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}".replace("-", MINUS)


def median(value: Mapping[str, float] | float | None) -> str:
    """A median with percentiles 20 and 80."""
    if not isinstance(value, Mapping):
        return number(value)
    low, high = sorted((value["p20"], value["p80"]))
    return f"{number(value['median'])} ({number(low)} to {number(high)})"


def engine(rows: Sequence[Row]) -> Table | None:
    found = latest(of(rows, "engine"))
    lines = [
        (
            f"{row['variant']}: {row['template']}, {row['B']}, {row['threads']}",
            median(row["prompt_ms"]),
            number(row["speedup"]["median"]),
            number(row["prompt_tokens_per_s"]),
            f"{row['cosine']['least']:.5f}",
        )
        for row in found
    ]
    columns = ("engine: template, prompts, threads", "ms a prompt", "× transformers", "prompt tokens/s", "least cosine")
    return table(columns, lines, found)


def waterfall(rows: Sequence[Row]) -> Table | None:
    steps = latest(of(rows, "engine waterfall"))
    found = sorted(steps, key=lambda row: (row["template"], row["threads"], row["place"]))
    lines, before = [], math.nan
    for row in found:
        now = row["prompt_ms"]["median"]
        gain = "–" if row["place"] == 0 else f"×{before / now:.2f}"
        lines.append((f"{row['template']}, {row['threads']}: {row['step']}", median(row["prompt_ms"]), gain))
        before = now
    return table(("template, threads: technique, on top of those before", "ms a prompt", "gives"), lines, found)


def scoring(rows: Sequence[Row]) -> Table | None:
    return across(latest(of(rows, "scoring", D=DIM, catalogue="random")), "call_us", ("N", "B", "threads"),
                  "intents, sessions, threads (µs a call)")  # fmt: skip


def topk(rows: Sequence[Row]) -> Table | None:
    return across(latest(of(rows, "topk")), "call_us", ("N", "B", "threads"), "intents, sessions, threads (µs a call)")


def tokenizer(rows: Sequence[Row]) -> Table | None:
    return across(latest(of(rows, "tokenizer")), "call_ms", ("template", "B"), "template, contexts (ms a call)")


def towers(rows: Sequence[Row]) -> Table | None:
    return across(latest(of(rows, "towers")), "call_ms", ("B", "intents"), "sessions, intents (ms a call)")


def training(rows: Sequence[Row]) -> Table | None:
    return across(latest(of(rows, "train steps")), "sessions_per_s", ("batch", "intents"),
                  "batch, intents (sessions/s)")  # fmt: skip


def alignment(rows: Sequence[Row]) -> Table | None:
    return across(latest(of(rows, "alignment step")), "sessions_per_s", ("rows", "dtype"),
                  "sessions in a micro-batch, products in (sessions/s)")  # fmt: skip


def batcher(rows: Sequence[Row]) -> Table | None:
    found = latest(of(rows, "batcher cost"))
    return table(
        ("way", "process CPU a request, µs", "requests/s"),
        [(row["variant"], median(row.get("cpu_us_per_request")), median(row["requests_per_s"])) for row in found],
        found,
    )


def overload(rows: Sequence[Row]) -> Table | None:
    found = latest(of(rows, "batcher overload"))
    return table(
        ("times capacity", "p99 of the accepted, ms", "useful share of capacity", "lost", "answered twice"),
        [
            (number(row["factor"], 2), number(row["accepted_ms"]["p99"]), number(row["goodput_share"]),
             str(row["lost"]), str(row["duplicated"]))
            for row in found
        ],
        found,
    )  # fmt: skip


def load(rows: Sequence[Row]) -> Table | None:
    found = sorted(latest(of(rows, "loadgen")), key=lambda row: (str(row["note"]), float(row["rate"])))
    return table(
        ("requests a second", "p50, ms", "p99, ms", "whole answers", "degraded", "refused"),
        [
            (number(row["rate"], 2), number(row["latency_ms"]["p50"]), number(row["latency_ms"]["p99"]),
             f"{row['outcomes'].get('ok', 0) / row['requests']:.0%}",
             *(str(row["outcomes"].get(outcome, 0)) for outcome in ("degraded", "overloaded")))
            for row in found
        ],
        found,
    )  # fmt: skip


def embedding(rows: Sequence[Row]) -> Table | None:
    return across(latest(of(rows, "embed")), "prompts_per_s", ("model", "dtype", "prompts"), "prompts/s", turned=True)


def data(rows: Sequence[Row]) -> Table | None:
    found = [row for name in ("data: simulate", "data: encode") for row in latest(of(rows, name))]
    return table(
        ("work", "sessions", "sessions/s"),
        [(f"{row['benchmark'].removeprefix('data: ')}: {row['variant']}", f"{row['sessions']:,}",
          median(row["sessions_per_s"])) for row in found],
        found,
    )  # fmt: skip


def end_to_end(rows: Sequence[Row]) -> Table | None:
    found = latest(of(rows, "end_to_end"))
    return table(
        ("template, service", "offered/s", "p50 ms", "p99 ms of all", "95 % interval"),
        [
            (f"{row['template']}: {row['service']}", number(row["rate"]), number(row["latency_ms"]["p50"]),
             number(row["promised_p99_ms"]), " to ".join(number(each) for each in row["p99_interval_ms"]))
            for row in sorted(found, key=lambda row: (row["template"], row["service"], row["rate"]))
        ],
        found,
    )  # fmt: skip


def exponents(rows: Sequence[Row]) -> Table | None:
    lines, sources = [], []
    for benchmark in SCALED:
        for curve in curves(rows, benchmark):
            every, large = fit(curve.sizes, curve.ms), fit(*larger_half(curve))
            span = f"{curve.sizes[0]:,.0f} to {curve.sizes[-1]:,.0f}"
            exponents_ = [exponent(each.exponent, each.error) for each in (every, large)]
            lines.append((f"{curve.variant}: {curve.size_name}", span, str(every.points), *exponents_))
        sources += latest(of(rows, benchmark)) if curves(rows, benchmark) else []
    return table(("time over", "measured", "points", "exponent", "larger half"), lines, sources)


def exponent(value: float, error: float) -> str:
    shown = f"{value:.2f}" + ("" if math.isnan(error) else f" ± {error:.2f}")
    return shown.replace("-", MINUS)


def table(columns: tuple[str, ...], lines: Sequence[tuple[str, ...]], sources: Sequence[Row]) -> Table | None:
    """None without lines."""
    return Table(columns, tuple(lines), tuple(sources)) if lines else None


def across(
    rows: Sequence[Row], value: str, shape: tuple[str, ...], title: str, *, turned: bool = False
) -> Table | None:
    """A line a shape and a column a variant; ``turned``: a line a variant."""
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    cells = {(shape_of(row, shape), row["variant"]): median(row[value]) for row in rows}
    places = sorted({shape_of(row, shape): None for row in rows})
    if turned:
        columns = (title, *map(shown, places))
        lines = [(name, *(cells.get((place, name), "–") for place in places)) for name in variants]
    else:
        columns = (title, *variants)
        lines = [(shown(place), *(cells.get((place, name), "–") for name in variants)) for place in places]
    return table(columns, lines, rows)


def shape_of(row: Row, shape: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(row[name] for name in shape)


def shown(place: tuple[Any, ...]) -> str:
    return ", ".join(f"{value:,}" if isinstance(value, int) else str(value) for value in place)


TABLES: Mapping[str, Callable[[Sequence[Row]], Table | None]] = {
    "end_to_end": end_to_end,
    "engine": engine,
    "waterfall": waterfall,
    "scoring": scoring,
    "topk": topk,
    "batcher": batcher,
    "overload": overload,
    "load": load,
    "tokenizer": tokenizer,
    "towers": towers,
    "training": training,
    "alignment": alignment,
    "data": data,
    "embedding": embedding,
    "exponents": exponents,
}


def fullest(name: str, rows: Sequence[Row]) -> Table | None:
    """The table of the machine that measured most of it, the newest of equals; None without rows."""
    made = [found for each in by_machine(rows).values() if (found := TABLES[name](each)) is not None]
    return max(made, key=lambda found: len(found.sources), default=None)


SUITE_OF = {
    "waterfall": "engine",
    "topk": "kernels",
    "overload": "batcher",
    "alignment": "training",
    "embedding": "data",
    "exponents": "scaling",
}


def none_yet(name: str) -> str:
    command = "python -m rgalign.bench.loadgen" if name == "load" else f"rgalign bench run {SUITE_OF.get(name, name)}"
    return f"No rows yet: `{command}`."
