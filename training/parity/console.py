"""The parity report as a terminal shows it."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

SHOWN_LAYERS = 5


def describe_parity(report: dict[str, Any]) -> RenderableType:
    """A table of the engines, what is beyond a limit, and the layers in which most of the error enters."""
    parts: list[RenderableType] = [_engines(report)]
    for engine in report["engines"]:
        parts.extend(Text(f"{engine['name']}: {breach}", style="red") for breach in engine["breaches"])
    parts.extend(Text(f"{name}: not compared, {why}", style="dim") for name, why in report.get("left_out", {}).items())
    parts.extend(_layers(engine) for engine in report["engines"] if engine.get("layers"))
    parts.append(Text("passed", style="green") if report["passed"] else Text("beyond its limits", style="bold red"))
    return Group(*parts)


def _engines(report: dict[str, Any]) -> Table:
    k, ranked = report["k"], report["ranker"] is not None
    title = (
        f"{report['prompts']} prompts of {report['sessions']} sessions ({report['split']}), against transformers fp32"
    )
    table = Table(title=title, title_justify="left")
    names = ["engine", "cosine", "least", "centred", "least", "max error"]
    names += [f"top-{k} overlap", "same first", f"ΔR@{k}", f"ΔNDCG@{k}"] if ranked else []
    for name in [*names, ""]:
        table.add_column(name, justify="left" if name in ("engine", "") else "right")
    for engine in report["engines"]:
        near = engine["closeness"]
        cells = [engine["name"], *(_cosine(near[name]) for name in ("cosine_mean", "cosine_min"))]
        cells += [_cosine(near[name]) for name in ("centred_mean", "centred_min")]
        cells.append(f"{near['max_error']:.2e}")
        if ranked:
            found = engine["ranking"]
            cells += [f"{100 * found['overlap']:.2f} %", f"{100 * found['same_first']:.2f} %"]
            cells += [_change(metric["change"]) for metric in found["metrics"].values()]
        table.add_row(*cells, "✘" if engine["breaches"] else "✔")
    return table


def _cosine(value: float | None) -> str:
    return "–" if value is None else f"{value:.5f}"


def _change(change: dict[str, float]) -> str:
    return f"{100 * change['estimate']:+.2f} [{100 * change['low']:+.2f}, {100 * change['high']:+.2f}]"


def _layers(engine: dict[str, Any]) -> Table:
    layers = engine["layers"]
    worst = sorted(layers, key=lambda layer: -float(layer["alone"]))[:SHOWN_LAYERS]
    title = f"{engine['name']}: the layers of {len(layers)} in which most error enters"
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.caption = (
        "alone: error of the latent query when only this layer is quantised, over the spread of prompts; "
        "varying: the same without what is common to all prompts; "
        "after: of the state behind it with all layers up to it; then of each product by itself"
    )
    names = ("layer", "alone", "varying", "after", "qkv", "out", "gate_up", "down")
    for name in names:
        table.add_column(name, justify="right")
    for layer in sorted(worst, key=lambda layer: int(layer["layer"])):
        table.add_row(str(layer["layer"]), *(f"{layer[name]:.4f}" for name in names[1:]))
    return table
