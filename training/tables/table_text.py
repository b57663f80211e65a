"""Names and numbers of a table as text, the same on the terminal, in Markdown and in the plot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rgalign.training.report_html import bounds_text, metric_name, points, verdict_word

Table = Mapping[str, Any]

COLUMNS = {"auc": "GAUC", "mrr_all": "MRR", "recall": "R", "ndcg": "N"}  # as the paper heads them


def column_name(metric: str) -> str:
    """``recall@3`` -> R@3."""
    family, separator, k = metric.partition("@")
    return f"{COLUMNS.get(family, metric_name(family))}{separator}{k}"


def row_label(table: Table, name: str) -> str:
    """``RGAlign-Rec (Full)``, with its distinguishing cells where several rows begin alike."""
    row = next(row for row in table["rows"] if row["name"] == name)
    first: str = row["cells"][0].strip()
    alike = [other for other in table["rows"] if other["cells"][0].strip() == first]
    if len(alike) == 1:
        return first
    told = [
        _told(head, cell)
        for place, (head, cell) in enumerate(zip(table["head"], row["cells"], strict=True))
        if place and len({other["cells"][place] for other in alike}) > 1
    ]
    return ", ".join([first, *told])


def _told(head: str, cell: str) -> str:
    """``SFT&CL``, but ``stage 3 no``."""
    return f"{head} {cell}".lower() if cell in ("Yes", "No", "-") else cell


def comparison_of(row: Mapping[str, Any]) -> str | None:
    """The row of comparison: the first of those that it is compared with."""
    return next(iter(row["against"]), None)


def change_text(found: Mapping[str, Any]) -> str:
    """``+0.38 [-0.10, +0.75] inconclusive``."""
    verdict = verdict_word(found["verdict"])
    return f"{points(found['difference'], sign=True)} {bounds_text(found, sign=True)} {verdict}"


def percent_text(cell: Mapping[str, Any] | None) -> str:
    """A relative change in per cent with its interval."""
    if cell is None:
        return "n/a"
    return f"{points(cell['mean'], sign=True)} % {bounds_text(cell, sign=True)}"


def seeds_text(found: Mapping[str, Any]) -> str:
    """``2 of 3``: the alignment seeds whose difference has the sign of the mean's; empty for fewer than two."""
    values = list(found["alignment_seeds"].values())
    if len(values) < 2 or found["difference"] == 0:
        return ""
    agree = sum(value * found["difference"] > 0 for value in values)
    return f"{agree} of {len(values)}"


def facts_text(table: Table) -> str:
    """Sessions, users, seeds and the kind of interval in one line."""
    data, evaluation, seeds = table["dataset"], table["evaluation"], table["seeds"]
    users = "" if data["users"] is None else f" of {data['users']:,} users"
    drawn = "users" if data["users"] is not None else "sessions"
    kinds = f"{len(seeds['ranker'])} ranker and {len(seeds['alignment'])} alignment seeds"
    level = f"{100 * evaluation['level']:g} %"
    return f"{data['sessions']:,} test sessions{users}, {kinds}; {level} intervals over {drawn}, in points (x 100)"
