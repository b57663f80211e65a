"""Table 5 as Markdown, on the terminal, and as a forest plot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table as Grid
from rich.text import Text

from rgalign.training.plots import IntervalRow, interval_plot
from rgalign.training.report_html import bounds_text, points
from rgalign.training.tables.forest import LEFT, WIDTH, interval_row, standalone
from rgalign.training.tables.table_markdown import markdown_table
from rgalign.training.tables.table_text import Table, percent_text

FAMILIES = {"csat": "CSAT", "ctr": "CTR", "ihr": "IHR", "clicks_per_place": "Clicks per place"}
STYLES = {"better": "green", "worse": "red"}
REMARKS = (
    "The paper gives neither traffic, duration nor p values, nor whether its changes are relative: here are both.",
    "The paper does not define CTR@K: here sessions with a click in the top K / sessions exposed.",
    "Clicks per place: clicks in the top K / places filled.",
    "Users are the independent units (delta method), since arms are assigned by user.",
    "A sample ratio mismatch stops every conclusion; a judge whose agreement with people is too low stops that of IHR.",
)


def online_name(metric: str) -> str:
    """``ctr@3`` -> CTR@3."""
    family, separator, k = metric.partition("@")
    return f"{FAMILIES[family]}{separator}{k}"


def online_markdown(table: Table) -> str:
    level = f"{100 * table['level']:g} %"
    parts = [
        f"# Table {table['table']}: {table['title']}",
        f"Relative change of the treatment, {level} intervals clustered by user; below it the verdict.",
        _main(table),
        "![Differences](forest.svg)",
        "## Arms",
        _arms(table),
        "## Users and sessions",
        _splits(table),
    ]
    if table["judge"] is not None:
        parts += ["## Judge", _judge(table)]
    parts += ["## Against the paper", "\n".join(f"- {remark}" for remark in REMARKS)]
    return "\n\n".join(parts) + "\n"


def _columns(table: Table) -> list[str]:
    """The paper's columns: everything but clicks per place."""
    return [name for name in table["metrics"] if not name.startswith("clicks_per_place")]


def _main(table: Table) -> str:
    rows = []
    for test in table["experiments"]:
        cells = []
        for name in _columns(table):
            found = test["metrics"].get(name)
            cells.append(f"n/a: {test['undefined'].get(name, '')}" if found is None else _cell(found))
        rows.append([test["name"], *cells])
    return markdown_table(["A/B test", *map(online_name, _columns(table))], rows)


def _cell(found: Table) -> str:
    return f"{percent_text(found['relative'])}<br>{verdict_text(found)}"


def verdict_text(found: Table) -> str:
    """The verdict, short for a metric that has one, and the guardrail's where there is one."""
    verdict = str(found["verdict"])
    short = verdict.partition(" ")[0] if verdict.startswith("inconclusive") else verdict
    guardrail = found["guardrail"]
    if guardrail is None or guardrail["verdict"] is None:
        return short
    return f"{short}; guardrail of {points(guardrail['margin'])} points: {guardrail['verdict']}"


def _arms(table: Table) -> str:
    head = ["A/B test", "metric", "control", "treatment", "difference, points", "p", "detectable", "verdict"]
    rows = []
    for test in table["experiments"]:
        for place, (name, found) in enumerate(test["metrics"].items()):
            arms = [f"{points(found[arm]['mean'])} {bounds_text(found[arm])}" for arm in ("control", "treatment")]
            change = f"{points(found['difference'], sign=True)} {bounds_text(found, sign=True)}"
            row = [*arms, change, f"{found['p_value']:.4f}", points(found["detectable"]), verdict_text(found)]
            rows.append([test["name"] if not place else "", online_name(name), *row])
    note = "\n\n*detectable*: the least true difference in points that such data finds in 80 % of experiments."
    return markdown_table(head, rows) + note


def _splits(table: Table) -> str:
    head = ["A/B test", "users", "expected share", "p of the split", "sessions", "of users in both arms, dropped"]
    rows = []
    for test in table["experiments"]:
        ratio = test["sample_ratio"]
        users = f"{ratio['control']:,} {test['control']}, {ratio['treatment']:,} {test['treatment']}"
        p_value = f"{ratio['p_value']:.4f}" + (" **mismatch**" if ratio["mismatch"] else "")
        sessions = " + ".join(f"{count:,}" for count in test["sessions"])
        rows.append([test["name"], users, f"{points(ratio['share'])} %", p_value, sessions, str(test["crossed"])])
    return markdown_table(head, rows)


def _judge(table: Table) -> str:
    judge, agreement = table["judge"], table["judge"]["agreement"]
    lines = [agreement_text(agreement)]
    for test in table["experiments"]:
        run = judge["experiments"][test["name"]]
        statuses = ", ".join(f"{count:,} {status}" for status, count in run["status"].items())
        shares = " and ".join(f"{points(share)} %" for share in test["judged_share"])
        tokens = f"{run['prompt_tokens']:,} + {run['completion_tokens']:,} tokens, cost {run['cost']:g}"
        lines.append(
            f"{test['name']}: {run['asked']:,} of {run['transcripts']:,} transcripts put to {run['model']} "
            f"({statuses}); {tokens}. Judged share of control and treatment: {shares}."
        )
    unclear = "a miss" if table["unclear"] == "miss" else "left out"
    lines.append(f"A session without a true intent is {unclear}. The judge sees neither the arm nor what was shown.")
    return "\n".join(f"- {line}" for line in lines)


def agreement_text(agreement: Table | None) -> str:
    if agreement is None:
        return "Agreement with people: **not measured** (give `labels`); IHR is the judge's word."
    kappa = agreement["kappa"]
    interval = f"{kappa['mean']:.2f} [{kappa['low']:.2f}, {kappa['high']:.2f}]"
    enough = "enough" if agreement["validated"] else "**too low to conclude from IHR**"
    return (
        f"Agreement with people: Cohen's kappa {interval} over {agreement['sessions']:,} sessions, "
        f"{points(agreement['equal'])} % equal; required {agreement['required']:g}: {enough}."
    )


def online_forest(table: Table) -> str:
    """Absolute differences in points, one block an experiment; without a conclusion a difference is grey."""
    rows = [row for test in table["experiments"] for row in _block(test)]
    return standalone(interval_plot(rows, "treatment − control, points", width=WIDTH, left=LEFT))


def _block(test: Table) -> Iterator[IntervalRow]:
    yield IntervalRow(test["name"] + (": sample ratio mismatch" if test["sample_ratio"]["mismatch"] else ""))
    for name, found in test["metrics"].items():
        verdict = found["verdict"] if found["verdict"] in STYLES else "inconclusive"
        yield interval_row(online_name(name), {**found, "verdict": verdict})


def print_online(table: Table, console: Console | None = None) -> None:
    """The table in 80 columns: a line a metric."""
    grid = Grid(title=f"Table {table['table']}: {table['title']}", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for name, justify in (("", "left"), ("control", "right"), ("treatment", "right")):
        grid.add_column(name, justify="right" if justify == "right" else "left", no_wrap=True)
    grid.add_column("relative", justify="right", no_wrap=True, min_width=24)
    grid.add_column("", overflow="fold")
    for test in table["experiments"]:
        grid.add_row(Text(test["name"], style="bold"))
        for name, found in test["metrics"].items():
            grid.add_row(*_console_cells(name, found))
    notes = [_split_note(test) for test in table["experiments"]]
    if table["judge"] is not None:
        notes.append(agreement_text(table["judge"]["agreement"]).replace("**", "").replace("`", ""))
    (console or Console()).print(Group(grid, *map(Text, notes)))


def _console_cells(name: str, found: dict[str, Any]) -> list[Text]:
    arms = [Text(points(found[arm]["mean"])) for arm in ("control", "treatment")]
    style = STYLES.get(found["verdict"], "dim")
    return [
        Text(f"  {online_name(name)}"),
        *arms,
        Text(percent_text(found["relative"])),
        Text(verdict_text(found), style),
    ]


def _split_note(test: Table) -> str:
    ratio = test["sample_ratio"]
    outcome = "MISMATCH: no conclusion" if ratio["mismatch"] else "as expected"
    users = f"{ratio['control']:,} + {ratio['treatment']:,} users"
    return f"{test['name']}: {users}, split {outcome} (p = {ratio['p_value']:.4f})"
