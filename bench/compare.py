"""Two measurements of the same cells: what became faster, what slower, and what only looks so.

    rgalign bench compare A B      A and B: a .jsonl file, a directory of them, or a commit of rows in bench/results/

A row holds a median, percentiles 20 and 80 and how often it was measured. On the logarithm, where changes are ratios,

    sigma    = (ln p80 - ln p20) / (2 z_0.8)             of a single measurement, if it were normal
    se       = sqrt(pi / 2) sigma / sqrt(n)              of the median; of several rows of a cell, of their mean

The machine itself drifts between two runs, far more than a median's own error. What cannot have changed says how much:
the peers, timed in turn with ours in both runs. Their mean ratio is taken off, and the scatter of one more like them is
added to the error, with Student's t for so few; of fewer than four it is DRIFT, without any nothing is taken off. A
change is called one if its interval, at 5 % over all cells together (Bonferroni), leaves out 1 and it is at least
``least``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rgalign.bench.result_rows import MEASURES, Cell, Row, cell, cell_name, measure, read_directory, read_rows
from rgalign.bench.result_rows import times_measured as times
from rgalign.bench.rows import RESULTS
from rgalign.errors import DataError

NORMAL = statistics.NormalDist()
Z_80 = NORMAL.inv_cdf(0.8)
LEVEL = 0.05  # over all cells of a comparison
DRIFT = 0.06  # standard deviation of ln(sessions/s) over four runs of `simulate` at commit ec55144d3f25
FEWEST_PEERS = 4
SHORTEST_COMMIT = 4

# What starts a variant's name that a change of ours does not reach.
PEERS = (
    "torch", "numpy", "faiss", "hnswlib", "transformers", "onnxruntime", "openvino", "asyncio", "ray", "bentoml",
    "padded batches", "baseline", "two-tower baseline", "one session at a time", "fastapi",
)  # fmt: skip

Verdict = Literal["faster", "slower", "no difference"]


@dataclass(frozen=True)
class Side:
    """Of one cell in A or B: the mean logarithm of its medians and its standard error."""

    log: float
    error: float


@dataclass(frozen=True)
class Change:
    """B against A in one cell: how much longer it takes (above 1: slower), with its interval."""

    name: str
    benchmark: str
    measure: str
    is_peer: bool
    before: float
    after: float
    ratio: float
    low: float
    high: float
    verdict: Verdict


@dataclass(frozen=True)
class Drift:
    """How much the peers of a benchmark seem slower in B, and their scatter; ``peers`` of them."""

    ratio: float
    scatter: float
    peers: int


@dataclass(frozen=True)
class Comparison:
    changes: tuple[Change, ...]
    drifts: Mapping[str, Drift]
    warnings: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """1 if something of ours is slower."""
        return int(any(change.verdict == "slower" and not change.is_peer for change in self.changes))


def load(what: str, results: Path = RESULTS) -> list[Row]:
    """Rows of a file, of a directory, or of a commit in ``results``.

    Raises:
        DataError: none of the three, or without rows.
    """
    path = Path(what)
    if path.is_dir():
        rows = read_directory(path)
    elif path.is_file():
        rows = read_rows(path)
    else:
        rows = [] if len(what) < SHORTEST_COMMIT else read_directory(results)
        rows = [row for row in rows if str(row.get("commit", "")).startswith(what)]
    if not rows:
        required = f"a file or directory of result rows, or a commit that rows in {results} have"
        raise DataError(where=f"compare {what}", required=required, received="no rows")
    return rows


def compare(before: Sequence[Row], after: Sequence[Row], least: float = 0.03) -> Comparison:
    """Every cell that both have.

    Args:
        least: the smallest change that is called one, as a share.

    Raises:
        DataError: they have no cell in common.
    """
    first, second = by_cell(before), by_cell(after)
    both = [found for found in first if found in second]
    if not both:
        required = f"a cell that both have ({len(first)} and {len(second)} with a measure)"
        raise DataError(where="compare", required=required, received="none in common")
    sides = {found: (side(first[found]), side(second[found])) for found in both}
    drifts = drifts_of(sides)
    z = NORMAL.inv_cdf(1 - LEVEL / (2 * len(both)))
    changes = [changed(found, first[found][-1], *sides[found], drifts[benchmark(found)], z, least) for found in both]
    return Comparison(tuple(changes), drifts, tuple(warnings(before, after)))


def by_cell(rows: Iterable[Row]) -> dict[Cell, list[Row]]:
    """The rows of each cell that measure something, of the commit that measured it last."""
    found: dict[Cell, list[Row]] = {}
    for row in rows:
        if measure(row) is not None:
            found.setdefault(cell(row), []).append(row)
    return {key: [row for row in of if row.get("commit") == of[-1].get("commit")] for key, of in found.items()}


def side(rows: Sequence[Row]) -> Side:
    """Logarithms of seconds: of a rate, minus its own."""
    logs, errors = zip(*(log_median(row) for row in rows), strict=True)
    within = math.sqrt(sum(error**2 for error in errors)) / len(rows)
    between = statistics.stdev(logs) / math.sqrt(len(rows)) if len(rows) > 1 else 0.0
    return Side(statistics.fmean(logs), max(within, between))


def log_median(row: Row) -> tuple[float, float]:
    found = measure(row)
    assert found is not None
    name, values = found
    low, high = sorted((max(values["p20"], 1e-12), max(values["p80"], 1e-12)))
    sigma = (math.log(high) - math.log(low)) / (2 * Z_80)
    logarithm = math.log(values["median"])
    return -logarithm if MEASURES[name] else logarithm, math.sqrt(math.pi / 2) * sigma / math.sqrt(times(row))


def benchmark(found: Cell) -> str:
    return str(dict(found)["benchmark"])


def is_peer(found: Cell) -> bool:
    return str(dict(found).get("variant", "")).startswith(PEERS)


def drifts_of(sides: Mapping[Cell, tuple[Side, Side]]) -> dict[str, Drift]:
    """Of each benchmark, from its own peers."""
    found = {}
    for name in {benchmark(each) for each in sides}:
        peers = [b.log - a.log for each, (a, b) in sides.items() if benchmark(each) == name and is_peer(each)]
        count, mean = len(peers), statistics.fmean(peers) if peers else 0.0
        scatter = statistics.stdev(peers) * math.sqrt(1 + 1 / count) if count >= FEWEST_PEERS else DRIFT
        found[name] = Drift(math.exp(mean), scatter, count)
    return found


def student(z: float, freedom: int) -> float:
    """Student's t where the normal distribution has ``z``: Abramowitz and Stegun 26.7.5, within 10 % from 3 on."""
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return z + math.fsum(term / freedom**power for power, term in enumerate(terms, 1))


def changed(found: Cell, row: Row, before: Side, after: Side, drift: Drift, z: float, least: float) -> Change:
    difference = after.log - before.log - math.log(drift.ratio)
    t = student(z, drift.peers - 1) if drift.peers >= FEWEST_PEERS else z
    width = math.hypot(z * before.error, z * after.error, t * drift.scatter)
    low, high = difference - width, difference + width
    verdict: Verdict = "no difference"
    if low * high > 0 and abs(math.expm1(difference)) >= least:
        verdict = "slower" if difference > 0 else "faster"
    measured = measure(row)
    assert measured is not None
    name = measured[0]
    shown = [math.exp(-side.log if MEASURES[name] else side.log) for side in (before, after)]
    return Change(
        name=cell_name(found),
        benchmark=benchmark(found),
        measure=name,
        is_peer=is_peer(found),
        before=shown[0],
        after=shown[1],
        ratio=math.exp(difference),
        low=math.exp(low),
        high=math.exp(high),
        verdict=verdict,
    )


def warnings(before: Sequence[Row], after: Sequence[Row]) -> list[str]:
    found = []
    for name in ("cpu", "cores", "gpu"):
        values = [{str(hardware(row).get(name)) for row in rows} for rows in (before, after)]
        if values[0] != values[1]:
            found.append(f"different {name}: {', '.join(sorted(values[0]))} and {', '.join(sorted(values[1]))}")
    if {str(row.get("peers")) for row in before} != {str(row.get("peers")) for row in after}:
        found.append("different versions of the peers: what they gained or lost is not the machine's drift")
    return found


def hardware(row: Row) -> dict[str, Any]:
    return dict(row.get("hardware") or {})
