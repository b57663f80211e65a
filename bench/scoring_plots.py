"""Plots of the rows of bench/scoring.py: time of a call over the catalogue's size, sessions a second over the batch.

python -m rgalign.bench.scoring_plots [bench/results/scoring.jsonl] [--out bench/results]    two PNG files
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rgalign.bench.rows import RESULTS

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("rows", type=Path, nargs="?", default=RESULTS / "scoring.jsonl")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--dim", type=int, default=128)
    arguments = parser.parse_args()
    if not arguments.rows.is_file():
        raise SystemExit(f"{arguments.rows}: no such file; python -m rgalign.bench.scoring writes it")
    rows = latest(json.loads(line) for line in arguments.rows.read_text(encoding="utf-8").splitlines())
    rows = [row for row in rows if row["benchmark"] == "scoring" and row["D"] == arguments.dim]
    if not rows:
        raise SystemExit(f"{arguments.rows} has no scoring rows with D = {arguments.dim}")
    for path in (over_catalogue(rows, arguments.out), over_batch(rows, arguments.out)):
        print(path)


def latest(rows: Iterable[Row]) -> list[Row]:
    """The last row of every variant in every cell."""
    return list({(r["benchmark"], r["variant"], r["N"], r["D"], r["B"], r["threads"], r["catalogue"]): r
                 for r in rows}.values())  # fmt: skip


def over_catalogue(rows: list[Row], out: Path) -> Path:
    """One panel a batch size: microseconds of a call over N."""
    batches = sorted({row["B"] for row in rows})
    figure = Figure(figsize=(4.5 * len(batches), 4.2))
    axes = figure.subplots(1, len(batches), squeeze=False)
    for axis, batch in zip(axes[0], batches, strict=True):
        draw(axis, [row for row in rows if row["B"] == batch], "N", lambda row: row["call_us"])
        axis.set(title=f"B = {batch}", xlabel="intents", ylabel="microseconds a call")
    return save(figure, out / "scoring_over_catalogue.png")


def over_batch(rows: list[Row], out: Path) -> Path:
    """One panel a catalogue size: sessions a second over B."""
    sizes = sorted({row["N"] for row in rows})
    figure = Figure(figsize=(4.5 * len(sizes), 4.2))
    axes = figure.subplots(1, len(sizes), squeeze=False)
    for axis, size in zip(axes[0], sizes, strict=True):
        draw(axis, [row for row in rows if row["N"] == size], "B",
             lambda row: {name: 1e6 * row["B"] / us for name, us in row["call_us"].items()})  # fmt: skip
        axis.set(title=f"N = {size:,}", xlabel="sessions a call", ylabel="sessions a second")
    return save(figure, out / "scoring_over_batch.png")


def draw(axis: Axes, rows: list[Row], over: str, value: Any) -> None:
    for variant in dict.fromkeys(row["variant"] for row in rows):
        points = sorted((row for row in rows if row["variant"] == variant), key=lambda row: row[over])
        places = [row[over] for row in points]
        values = [value(row) for row in points]
        ours = variant.startswith("rgalign")
        line = axis.plot(places, [v["median"] for v in values], marker="o", linewidth=2.4 if ours else 1.2,
                         label=variant)[0]  # fmt: skip
        low, high = ([min(v["p20"], v["p80"]) for v in values], [max(v["p20"], v["p80"]) for v in values])
        axis.fill_between(places, low, high, color=line.get_color(), alpha=0.15)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    return path


if __name__ == "__main__":
    main()
