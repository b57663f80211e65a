"""The comparison as the demo prints it: fits 80 columns, and says every number that report.json holds."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from rgalign.training.loop.arms import arms_table


def test_fits_and_tells() -> None:
    cell = {"recall@3": {"mean": 0.1502, "low": 0.0988, "high": 0.2038}}
    change = {"difference": -0.0165, "low": -0.0504, "high": 0.0165, "verdict": "inconclusive (spans 0)"}
    summary = {
        "metrics": {"baseline": cell, "full": cell},
        "differences": {"baseline": {"control": {"recall@3": change}}, "full": {"baseline": {"recall@3": change}}},
    }
    text = StringIO()
    Console(width=80, file=text).print(arms_table(summary, ("recall@3",), ("baseline", "control")))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert text.getvalue().count("[9.88, 20.38]") == 2
    assert text.getvalue().count("\N{MINUS SIGN}1.65 [\N{MINUS SIGN}5.04, +1.65]") == 2
    assert text.getvalue().count("inconclusive") == 2
