"""A comparison as a table for the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from rgalign.bench.compare import FEWEST_PEERS, Change, Comparison

STYLES = {"slower": "red", "faster": "green", "no difference": "dim"}


def describe(comparison: Comparison, *, everything: bool) -> Table:
    """Changes first; cells without a difference only if ``everything`` is asked for."""
    shown = [each for each in comparison.changes if everything or each.verdict != "no difference"]
    shown.sort(key=lambda each: (each.benchmark, each.is_peer, -each.ratio))
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, caption=caption(comparison), caption_justify="left")
    table.add_column("", overflow="fold")
    for name in ("A", "B", "time B / A", "interval"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for each in shown:
        table.add_row(
            each.name, *(f"{value:,.4g}" for value in (each.before, each.after)), f"{each.ratio:.3f}",
            f"{each.low:.3f} to {each.high:.3f}", word(each),
        )  # fmt: skip
    return table


def word(change: Change) -> Text:
    return Text(change.verdict + (" (a peer)" if change.is_peer else ""), style=STYLES[change.verdict])


def caption(comparison: Comparison) -> str:
    counts = {verdict: sum(each.verdict == verdict for each in comparison.changes) for verdict in STYLES}
    lines = [
        f"{len(comparison.changes)} cells: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    ]
    for name, drift in sorted(comparison.drifts.items()):
        assumed = "" if drift.peers >= FEWEST_PEERS else " (assumed)"
        told = f"its {drift.peers} peers took {drift.ratio:.3f} of the time, which is taken off"
        lines.append(f"{name}: {told if drift.peers else 'no peers'}; ± {drift.scatter:.3f}{assumed}")
    return "\n".join([*lines, *comparison.warnings])
