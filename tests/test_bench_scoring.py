"""The scoring benchmark's own promises: wrong answers are noticed before timing, rows are complete, plots are drawn."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from rgalign.bench import rows, scoring
from rgalign.bench.scoring_peers import Variant


def test_recall_and_the_refusal_to_time_wrong_answers() -> None:
    catalogue = scoring.unit(np.random.default_rng(0).standard_normal((50, 8), dtype=np.float32))
    queries = catalogue[:3].copy()  # the best row of query b is row b
    right = np.argsort(-(queries @ catalogue.T), axis=1)[:, :2]
    assert right[:, 0].tolist() == [0, 1, 2]
    assert scoring.recall(right, queries, catalogue) == 1
    wrong = right.copy()
    wrong[0, 0] = np.argmin(catalogue @ queries[0])
    assert scoring.recall(wrong, queries, catalogue) == pytest.approx(5 / 6)
    peer = Variant(lambda queries: wrong, 4, exact=True)
    with pytest.raises(AssertionError, match="peer found 0.8333"):
        scoring.require_exact({"peer": peer}, {"peer": 5 / 6})


@pytest.mark.parametrize("more", [[], ["--projection", "16"]])
def test_a_tiny_grid_from_rows_to_plots(more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "COPY_BYTES", 1 << 16)
    monkeypatch.setattr(scoring, "PEAK_SIDE", 32)
    monkeypatch.setattr(rows, "_commit", lambda: "none")  # two runs of git a row
    out = tmp_path / "rows.jsonl"
    grid = ["--sizes", "40", "90", "--batches", "1", "3", "--dims", "8", "--seconds", "0.01"]
    monkeypatch.setattr(sys, "argv", ["scoring", *grid, "--skip", "torch.compile", "--out", str(out), *more])
    scoring.main()
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert {(row["N"], row["B"]) for row in written} == {(40, 1), (40, 3), (90, 1), (90, 3)}
    assert {"rgalign fp32", "rgalign int8", "torch"} <= {row["variant"] for row in written}
    for row in written:
        assert row["call_us"]["p20"] <= row["call_us"]["median"] <= row["call_us"]["p80"]
        assert row["recall"] == 1 or row["variant"] in ("hnswlib", "faiss sq8")
    if more:
        return
    pytest.importorskip("matplotlib")
    from rgalign.bench import scoring_plots

    monkeypatch.setattr(sys, "argv", ["scoring_plots", str(out), "--out", str(tmp_path), "--dim", "8"])
    scoring_plots.main()
    assert all((tmp_path / f"scoring_over_{over}.png").stat().st_size > 5000 for over in ("catalogue", "batch"))
