"""Forest plot of a table: the difference of every comparison with its interval, one block a metric, as one SVG file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rgalign.training.plots import IntervalRow, interval_plot
from rgalign.training.report_html import bounds_text, metric_name, points, verdict_word
from rgalign.training.tables.table_text import Table, comparison_of, row_label

COLOURS = {"better": "#0b6b3a", "worse": "#a11d1d", "inconclusive": "#7b8494"}
FONT = "12px system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
LEFT, WIDTH = 560, 1120


def forest_plot(table: Table) -> str:
    """All comparisons in the primary metric, then of every other metric those with the row of comparison."""
    primary = table["primary"]
    rows = [IntervalRow(f"{metric_name(primary)}: every comparison"), *_lines(table, primary, every=True)]
    for name in table["metrics"]:
        if name != primary:
            rows += [IntervalRow(metric_name(name)), *_lines(table, name, every=False)]
    return standalone(interval_plot(rows, "difference, points", width=WIDTH, left=LEFT))


def _lines(table: Table, name: str, *, every: bool) -> Iterator[IntervalRow]:
    for row in table["rows"]:
        for base in row["against"] if every else [comparison_of(row)]:
            if base is not None:
                label = f"{row_label(table, row['name'])} \N{MINUS SIGN} {row_label(table, base)}"
                yield interval_row(label, row["against"][base][name])


def interval_row(label: str, found: dict[str, Any]) -> IntervalRow:
    """A line in points, in the colour of its verdict."""
    word = verdict_word(found["verdict"])
    values = (100 * found[key] for key in ("difference", "low", "high"))
    estimate, low, high = values
    note = f"{points(found['difference'], sign=True)} {bounds_text(found, sign=True)}"
    return IntervalRow(label, note, ((COLOURS[word], estimate, low, high),))


def standalone(svg: str) -> str:
    """An SVG that was made to stand in a page, as a file of its own."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" style="font: {FONT}; background: #fff" '
    return svg.replace("<svg ", head, 1) + "\n"
