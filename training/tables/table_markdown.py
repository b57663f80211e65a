"""A table as Markdown: the paper's lay-out, then every comparison, then where it is not the paper's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rgalign.training.report_html import bounds_text, points
from rgalign.training.tables.table_text import (
    Table,
    change_text,
    column_name,
    comparison_of,
    facts_text,
    percent_text,
    row_label,
    seeds_text,
)


def table_markdown(table: Table) -> str:
    parts = [
        f"# Table {table['table']}: {table['title']}, {table['dataset']['name']}",
        facts_text(table) + ".",
        _main(table),
        "Below each mean: the difference from the row's first comparison below; *inconclusive*: it spans zero.",
        "![Differences](forest.svg)",
        "## Comparisons",
        _comparisons(table),
    ]
    if any(row["metrics"] and row["num_runs"] > 1 for row in table["rows"]):
        parts += ["## Between seeds", _spreads(table)]
    parts += ["## Against the paper", "\n".join(f"- {remark}" for remark in table["remarks"])]
    return "\n\n".join(parts) + "\n"


def _main(table: Table) -> str:
    rows = []
    for row in table["rows"]:
        base = comparison_of(row)
        cells = []
        for name in table["metrics"]:
            if row["metrics"] is None:
                cells.append("n/a")
                continue
            mean = points(row["metrics"][name]["mean"])
            cells.append(mean if base is None else f"{mean}<br>{change_text(row['against'][base][name])}")
        note = f"<br>{row['note']}" if row["note"] else ""
        rows.append([row["cells"][0].strip() + note, *row["cells"][1:], *cells])
    for each in table["improvements"]:
        blanks = [""] * (len(table["head"]) - 1)
        rows.append(
            [f"*{each['label']}*", *blanks, *(percent_text(each["metrics"][name]) for name in table["metrics"])]
        )
    return markdown_table([*table["head"], *map(column_name, table["metrics"])], rows)


def _comparisons(table: Table) -> str:
    return markdown_table(
        ["row", "minus", "metric", "difference", "relative", "p", "alignment seeds of this sign"],
        [line for row in table["rows"] for line in _comparison_lines(table, row)],
    )


def _comparison_lines(table: Table, row: Table) -> Iterator[list[str]]:
    for base, metrics in row["against"].items():
        for place, name in enumerate(table["metrics"]):
            found = metrics[name]
            names = [row_label(table, row["name"]), row_label(table, base)] if not place else ["", ""]
            change = [change_text(found), percent_text(found["relative"]), f"{found['p_value']:.4f}"]
            yield [*names, column_name(name), *change, seeds_text(found)]


def _spreads(table: Table) -> str:
    """Means of the primary metric, and their standard deviations between seeds."""
    name = table["primary"]
    rows = []
    for row in table["rows"]:
        if row["metrics"] is None:
            continue
        cell = row["metrics"][name]
        spread = [points(cell[kind]) if cell[kind] is not None else "" for kind in ("ranker_sd", "alignment_sd")]
        mean = f"{points(cell['mean'])} {bounds_text(cell)}"
        rows.append([row_label(table, row["name"]), str(row["num_runs"]), mean, *spread])
    return markdown_table(["row", "runs", column_name(name), "SD between rankers", "SD between alignments"], rows)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
