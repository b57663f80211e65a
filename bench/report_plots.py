"""The report's figures as inline SVG, one panel each so that a narrow window shows them one below the other.

Text stays text, every figure's identifiers carry its own name (two SVGs in one page share a name space), and a figure
has no date: the same rows give the same bytes.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from rgalign.bench.engine_plots import draw_variants, draw_waterfall
from rgalign.bench.report_fits import SCALED, Curve, curves, fit, larger_half
from rgalign.bench.report_tables import DIM, exponent
from rgalign.bench.result_rows import Row, latest, of

OURS = ("#1b7837", "#5aae61", "#0b5394", "#7f6000")  # rgalign's variants, in the order in which they come
PEERS = ("#999999", "#2166ac", "#762a83", "#d6604d", "#b8860b", "#8c6bb1", "#444444")
SIZE = (5.4, 3.8)


@dataclass(frozen=True)
class Drawn:
    title: str
    svg: str
    caption: str = ""


def drawn(title: str, figure: Figure, caption: str = "") -> Drawn:
    name = re.sub(r"\W+", "-", title.lower())
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.tight_layout()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = apart(svg, name)
    # Browsers' own sizes: the width of the page decides.
    svg = re.sub(r'<svg[^>]*?viewBox="([^"]+)"[^>]*>', _opening, svg, count=1, flags=re.DOTALL)
    return Drawn(title, svg, caption)


def apart(svg: str, name: str) -> str:
    """With ``name`` before every identifier."""
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    return re.sub(r'(xlink:href="|url\()#', rf"\g<1>#{name}-", svg)


def _opening(found: re.Match[str]) -> str:
    return (
        f'<svg viewBox="{found[1]}" xmlns="http://www.w3.org/2000/svg" '
        'xmlns:xlink="http://www.w3.org/1999/xlink" role="img">'
    )


def axes(width: float = SIZE[0], height: float = SIZE[1]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots()


def colours(variants: Sequence[str]) -> dict[str, str]:
    """Ours in greens and blues first, by the order in which they come."""
    ours = [name for name in variants if is_ours(name)]
    others = [name for name in variants if not is_ours(name)]
    return {name: (OURS, PEERS)[not is_ours(name)][place % len((OURS, PEERS)[not is_ours(name)])]
            for group in (ours, others) for place, name in enumerate(group)}  # fmt: skip


def is_ours(variant: str) -> bool:
    return variant.startswith(("rgalign", "C++ driver"))


# ---- latency and throughput ------------------------------------------------------------------------------------------


def latency_throughput(rows: Sequence[Row]) -> Iterator[Drawn]:
    """One figure a template of the services side by side, and one of each load that was tried on its own."""
    services = latest(of(rows, "end_to_end"))
    for template in dict.fromkeys(row["template"] for row in services):
        inside = [row for row in services if row["template"] == template]
        series = {name: [row for row in inside if row["service"] == name] for name in
                  dict.fromkeys(row["service"] for row in inside)}  # fmt: skip
        yield drawn(f"Service under load, template {template}", load_figure(series, "promised_p99_ms"),
                    "Open loop, from the scheduled arrival; server and generator share the cores.")  # fmt: skip
    loads = latest(of(rows, "loadgen"))
    for key in dict.fromkeys((row["target"], row["arrivals"], row["note"]) for row in loads):
        points = [row for row in loads if (row["target"], row["arrivals"], row["note"]) == key]
        title = f"Load on {', '.join(str(part) for part in key if part)}"
        yield drawn(title, load_figure({"rgalign": points}, None), "Open loop, from the scheduled arrival.")


def load_figure(series: Mapping[str, Sequence[Row]], p99: str | None) -> Figure:
    """p50 and p99 over the answers that came a second; the last point of a curve is where it bends up."""
    figure, axis = axes()
    palette = colours(list(series))
    for name, rows in series.items():
        ordered = sorted(rows, key=lambda row: float(row["rate"]))
        for style, label, values in (
            ("-o", "p99", [row[p99] if p99 else row["latency_ms"]["p99"] for row in ordered]),
            ("--.", "p50", [row["latency_ms"]["p50"] for row in ordered]),
        ):
            shown = [math.nan if value is None else value for value in values]
            axis.plot([row["rate"] for row in ordered], shown, style, color=palette[name], label=f"{name}, {label}")
    axis.axhline(120, color="#b2182b", linestyle=":", linewidth=1, label="120 ms")
    axis.set(xlabel="offered requests a second", ylabel="milliseconds", yscale="log")
    return finished(figure, axis)


# ---- the engine ------------------------------------------------------------------------------------------------------


def waterfalls(rows: Sequence[Row]) -> Iterator[Drawn]:
    found = latest(of(rows, "engine waterfall"))
    for template, threads in dict.fromkeys((row["template"], row["threads"]) for row in found):
        steps = [row for row in found if (row["template"], row["threads"]) == (template, threads)]
        figure, axis = axes(6.2, 4.4)
        draw_waterfall(axis, sorted(steps, key=lambda row: row["place"]))
        axis.set_ylabel("milliseconds a prompt")
        axis.margins(y=0.12)
        yield drawn(f"What each technique gives, template {template}, {threads} threads", figure)


def engines(rows: Sequence[Row]) -> Iterator[Drawn]:
    found = latest(of(rows, "engine"))
    for template, batch, threads in dict.fromkeys((row["template"], row["B"], row["threads"]) for row in found):
        inside = [row for row in found if (row["template"], row["B"], row["threads"]) == (template, batch, threads)]
        figure, axis = axes(5.4, 0.34 * len(inside) + 1.4)
        draw_variants(axis, inside)
        axis.set_xlabel("milliseconds a prompt")
        yield drawn(f"Engines, template {template}, batch {batch}, {threads} threads", figure)


def rooflines(rows: Sequence[Row]) -> Iterator[Drawn]:
    """Measured peaks as roofs, one prompt of rising length as points; one figure a number of threads."""
    points, roofs = latest(of(rows, "scaling: length")), latest(of(rows, "machine peaks"))
    for threads in dict.fromkeys(row["threads"] for row in points):
        inside = [row for row in points if row["threads"] == threads]
        roof = next((row for row in roofs if row["threads"] == threads), None)
        if roof is not None:
            caption = (
                "A prompt of T tokens does its operations on weights that are read once. Sloped: the bytes that a copy "
                "reads and writes a second. Level: a large float32 product; dashed, 8-bit multiply-adds on registers; "
                "dotted, on AMX tiles."
            )
            yield drawn(f"Roofline, {threads} threads", roofline(inside, roof), caption)


def roofline(points: Sequence[Row], roof: Row) -> Figure:
    figure, axis = axes(6.2, 4.2)
    palette = colours(list(dict.fromkeys(row["variant"] for row in points)))
    peaks, read = roof["gflop_per_s"], roof["copy_gb_per_s"]
    intensities = [1e9 * row["gflop"] / row["weight_bytes"] for row in points]
    span = [min(intensities) / 2, max(intensities) * 2]
    for name, style in (("sgemm", "-"), ("int8_registers", "--"), ("int8_tiles", ":")):
        if peaks.get(name):
            places = sorted({span[0], min(max(peaks[name] / read, span[0]), span[1]), span[1]})
            line = [min(peaks[name], read * place) for place in places]
            axis.plot(places, line, style, color="#1f2430", linewidth=1.2)
            label = f"{name.replace('_', ', ')} {peaks[name]:.0f}"
            axis.annotate(label, (span[1], peaks[name]), ha="right", va="bottom", fontsize=8)
    for name, colour in palette.items():
        mine = [row for row in points if row["variant"] == name]
        places = [1e9 * row["gflop"] / row["weight_bytes"] for row in mine]
        rates = [row["gflop_per_s"]["median"] for row in mine]
        axis.plot(places, rates, "o-", color=colour, linewidth=0.8, label=name)
    axis.set(xscale="log", yscale="log", xlabel="operations a byte of weights", ylabel="10⁹ operations a second")
    return finished(figure, axis)


# ---- growth ----------------------------------------------------------------------------------------------------------


def growths(rows: Sequence[Row]) -> Iterator[Drawn]:
    for benchmark, (_, size) in SCALED.items():
        found = curves(rows, benchmark)
        if found:
            title = f"Growth: {benchmark.removeprefix('scaling: ')}"
            yield drawn(title, growth(found, size), "In the legend: exponents fitted to the larger half of the sizes.")


def growth(found: Sequence[Curve], size: str) -> Figure:
    figure, axis = axes()
    palette = colours([curve.variant for curve in found])
    for curve in found:
        fitted = fit(*larger_half(curve))
        label = f"{curve.variant}: {exponent(fitted.exponent, fitted.error)}"
        axis.plot(curve.sizes, curve.ms, "o-", markersize=4, color=palette[curve.variant], label=label,
                  linewidth=2.0 if is_ours(curve.variant) else 1.2)  # fmt: skip
        axis.fill_between(curve.sizes, curve.low, curve.high, color=palette[curve.variant], alpha=0.15)
    axis.set(xscale="log", yscale="log", xlabel=size, ylabel="milliseconds")
    return finished(figure, axis)


def scorers(rows: Sequence[Row]) -> Iterator[Drawn]:
    """Time over the catalogue at each batch, of the scoring suite's own grid."""
    found = latest(of(rows, "scoring", D=DIM, catalogue="random"))
    threads = max((row["threads"] for row in found), default=0)
    found = [row for row in found if row["threads"] == threads]
    for batch in sorted({row["B"] for row in found}):
        inside = [row for row in found if row["B"] == batch]
        if len({row["N"] for row in inside}) < 2:
            continue
        figure, axis = axes()
        palette = colours(list(dict.fromkeys(row["variant"] for row in found)))
        for name in dict.fromkeys(row["variant"] for row in inside):
            mine = sorted((row for row in inside if row["variant"] == name), key=lambda row: row["N"])
            axis.plot([row["N"] for row in mine], [row["call_us"]["median"] for row in mine], "o-", markersize=4,
                      color=palette[name], label=name, linewidth=2.0 if is_ours(name) else 1.2)  # fmt: skip
        axis.set(xscale="log", yscale="log", xlabel="intents", ylabel="microseconds a call")
        yield drawn(f"Scoring {batch} sessions, {threads} threads, D = {DIM}", finished(figure, axis))


def plain_ticks(side: Any) -> None:
    """1, 2, 5, 10, ... of less than three decades, else powers of ten."""
    low, high = side.get_view_interval()
    subs = (1.0, 2.0, 5.0) if high / low < 1_000 else (1.0,)
    side.set_major_locator(LogLocator(subs=subs))
    side.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    side.set_minor_formatter(NullFormatter())


def short(value: float) -> str:
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if value >= unit * 9.99:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def finished(figure: Figure, axis: Axes) -> Figure:
    for side in (axis.xaxis, axis.yaxis):
        if side.get_scale() == "log":
            plain_ticks(side)
    axis.grid(alpha=0.3)
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        axis.legend(handles, labels, fontsize=7.5, framealpha=0.85)
    return figure
