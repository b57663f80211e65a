"""Plots of the rows of bench/engine.py: what each technique gives, and time of a prompt beside other engines.

python -m rgalign.bench.engine_plots [bench/results/engine.jsonl] [--out bench/results]    SVG and PNG files
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rgalign.bench.rows import RESULTS

Row = dict[str, Any]
COLOURS = {"rgalign": "#1b7837", "transformers": "#999999", "onnxruntime": "#2166ac", "openvino": "#762a83"}
FORMATS = ("svg", "png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("rows", type=Path, nargs="?", default=RESULTS / "engine.jsonl")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if not arguments.rows.is_file():
        raise SystemExit(f"{arguments.rows}: no such file; python -m rgalign.bench.engine writes it")
    rows = latest(json.loads(line) for line in arguments.rows.read_text(encoding="utf-8").splitlines())
    drawn = [("engine waterfall", over_steps, "engine_waterfall"), ("engine", over_variants, "engine_variants")]
    for benchmark, draw, name in drawn:
        of_it = [row for row in rows if row["benchmark"] == benchmark]
        if not of_it:
            print(f"{arguments.rows} has no rows of `{benchmark}`")
            continue
        for path in save(draw(of_it), arguments.out, name):
            print(path)


def latest(rows: Iterable[Row]) -> list[Row]:
    """The last row of every variant or step in every cell."""
    return list({(r["benchmark"], r.get("variant"), r.get("step"), *cell(r)): r for r in rows}.values())


def cell(row: Row) -> tuple[Any, ...]:
    return row.get("model"), row.get("template"), row.get("B"), row.get("threads"), row.get("dtype")


def over_steps(rows: Sequence[Row]) -> Figure:
    """One panel a template: milliseconds of a prompt after each technique, and what it saved over the step before."""
    templates = list(dict.fromkeys(row["template"] for row in rows))
    figure = Figure(figsize=(6.4 * len(templates), 4.6))
    panels = figure.subplots(1, len(templates), squeeze=False)[0]
    for axis, template in zip(panels, templates, strict=True):
        steps = sorted((row for row in rows if row["template"] == template), key=lambda row: row["place"])
        draw_waterfall(axis, steps)
        first = steps[0]
        axis.set_title(f"{template}: {first['B']} prompts, {first['threads']} thread(s)")
        axis.set_ylabel("milliseconds a prompt")
    return figure


def draw_waterfall(axis: Axes, steps: Sequence[Row]) -> None:
    """Bars hang from the step before; the first and the last stand on the ground."""
    medians = [step["prompt_ms"]["median"] for step in steps]
    before = [medians[0], *medians[:-1]]
    for place, (step, now, was) in enumerate(zip(steps, medians, before, strict=True)):
        if place == 0:
            axis.bar(place, now, color=COLOURS["transformers"])
        else:
            axis.bar(place, now - was, bottom=was, color=COLOURS["rgalign"] if now <= was else "#b2182b")
        low, high = step["prompt_ms"]["p20"], step["prompt_ms"]["p80"]
        axis.vlines(place, min(low, high), max(low, high), color="black", linewidth=1)
        label = f"{now:.0f}" if place == 0 else f"{now:.0f}  (×{was / now:.2f})"
        axis.annotate(label, (place, max(now, was)), ha="center", va="bottom", fontsize=8)
    axis.bar(len(steps), medians[-1], color=COLOURS["rgalign"])
    axis.annotate(f"×{medians[0] / medians[-1]:.1f} in all", (len(steps), medians[-1]), ha="center", va="bottom")
    names = [*(step["step"].replace(", ", ",\n") for step in steps), "all"]
    axis.set_xticks(range(len(names)), names, rotation=25, ha="right", fontsize=8)
    axis.grid(alpha=0.3, axis="y")


def over_variants(rows: Sequence[Row]) -> Figure:
    """One panel a cell: milliseconds of a prompt of every variant, with its speed-up."""
    cells = list(dict.fromkeys((row["template"], row["B"], row["threads"]) for row in rows))
    columns = min(len(cells), 4)
    lines = -(-len(cells) // columns)
    figure = Figure(figsize=(5.4 * columns, 3.6 * lines))
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis, (template, batch, threads) in zip(panels, cells, strict=False):
        of_cell = [row for row in rows if (row["template"], row["B"], row["threads"]) == (template, batch, threads)]
        draw_variants(axis, of_cell)
        axis.set(title=f"{template}, B = {batch}, {threads} thread(s)", xlabel="milliseconds a prompt")
    for axis in panels[len(cells) :]:
        axis.set_axis_off()
    return figure


def draw_variants(axis: Axes, rows: Sequence[Row]) -> None:
    for place, row in enumerate(rows):
        time = row["prompt_ms"]
        colour = COLOURS.get(row["variant"].split()[0], "#444444")
        axis.barh(place, time["median"], color=colour)
        axis.hlines(place, min(time["p20"], time["p80"]), max(time["p20"], time["p80"]), color="black", linewidth=1)
        axis.annotate(f" ×{row['speedup']['median']:.1f}", (time["p80"], place), va="center", fontsize=8)
    axis.set_yticks(range(len(rows)), [row["variant"] for row in rows], fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.15)
    axis.grid(alpha=0.3, axis="x")


def save(figure: Figure, out: Path, name: str) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    paths = [out / f"{name}.{suffix}" for suffix in FORMATS]
    for path in paths:
        figure.savefig(path, dpi=120)
    return paths


if __name__ == "__main__":
    main()
