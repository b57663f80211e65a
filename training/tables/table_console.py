"""A table on the terminal, in 80 columns: the paper's lay-out, then all comparisons in the primary metric."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table as Grid
from rich.text import Text

from rgalign.training.report_html import bounds_text, points, verdict_word
from rgalign.training.tables.table_text import Table, column_name, comparison_of, facts_text, row_label

MARKS = {"better": ("▲", "green"), "worse": ("▼", "red"), "inconclusive": ("~", "dim")}


def print_table(table: Table, console: Console | None = None) -> None:
    (console or Console()).print(Group(_means(table), _comparisons(table)))


def _means(table: Table) -> Grid:
    title = f"Table {table['table']}: {table['title']}, {table['dataset']['name']}"
    caption = (
        f"{facts_text(table)}. ▲ better, ▼ worse than the row of comparison, ~ inconclusive: spans zero. "
        "Below it the interval of the difference"
    )
    grid = Grid(title=title, caption=caption, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    grid.add_column("", overflow="fold", ratio=1)
    for name in table["metrics"]:
        grid.add_column(column_name(name), justify="right", no_wrap=True, min_width=6)
    for row in table["rows"]:
        label, *cells = row["cells"]
        told = ", ".join(cell for cell in cells if cell != "-")
        text = Text(label + (f"\n  {told}" if told else ""))
        if row["note"]:
            text.append(f"\n  {row['note']}", style="dim")
        grid.add_row(text, *(_cell(row, name) for name in table["metrics"]))
    return grid


def _cell(row: dict[str, Any], name: str) -> Text:
    if row["metrics"] is None:
        return Text("n/a", style="dim")
    text = Text(points(row["metrics"][name]["mean"]))
    base = comparison_of(row)
    if base is not None:
        found = row["against"][base][name]
        mark, style = MARKS[verdict_word(found["verdict"])]
        text.append(f" {mark}", style=style)
        text.append("\n" + bounds_text(found, sign=True).replace(", ", ",\n"), style="dim")
    return text


def _comparisons(table: Table) -> Grid:
    name = table["primary"]
    grid = Grid(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    grid.add_column(f"{column_name(name)}: row", overflow="fold")
    grid.add_column("minus", overflow="fold")
    grid.add_column("points", justify="right", no_wrap=True, min_width=22)
    grid.add_column("", no_wrap=True, min_width=12)
    for row in table["rows"]:
        for place, (base, metrics) in enumerate(row["against"].items()):
            found = metrics[name]
            word = verdict_word(found["verdict"])
            change = f"{points(found['difference'], sign=True)} {bounds_text(found, sign=True)}"
            label = row_label(table, row["name"]) if not place else ""
            grid.add_row(label, row_label(table, base), change, Text(word, style=MARKS[word][1]))
    return grid
