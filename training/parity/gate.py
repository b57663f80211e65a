"""Whether an engine is inside its limits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rgalign.training.parity.config import Limits


def breaches(limits: Limits, found: dict[str, Any]) -> list[str]:
    """What of a compared engine (see parity.py) is beyond ``limits``, in words; empty: it passes.

    NaN is beyond every limit.
    """
    return [*_closeness(limits, found["closeness"]), *_ranking(limits, found.get("ranking"))]


def _closeness(limits: Limits, found: dict[str, Any]) -> Iterator[str]:
    for name in ("cosine_mean", "cosine_min", "centred_mean"):
        least, value = getattr(limits, name), found[name]
        if least is not None and value is not None and not value >= least:
            yield f"{name} {value:.6f}, at least {least}"


def _ranking(limits: Limits, found: dict[str, Any] | None) -> Iterator[str]:
    if found is None:
        return
    if limits.overlap is not None and not found["overlap"] >= limits.overlap:
        yield f"overlap {found['overlap']:.4f}, at least {limits.overlap}"
    for name, metric in found["metrics"].items():
        change = metric["change"]
        if limits.change is not None and not abs(change["estimate"]) <= limits.change:
            yield f"{name} {100 * change['estimate']:+.3f} points, at most ±{100 * limits.change:g}"
        reach = max(abs(change["low"]), abs(change["high"]))
        if limits.interval is not None and not reach <= limits.interval:
            interval = f"[{100 * change['low']:+.3f}, {100 * change['high']:+.3f}]"
            yield f"{name} interval {interval} points, within ±{100 * limits.interval:g}"
