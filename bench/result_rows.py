"""Result rows read again: what a row measured, where it stands (its cell), and the latest row of every cell.

A cell is everything that was chosen before the clock started: the benchmark, the variant and the shape. Two rows of one
cell are two measurements of the same thing, which is what may be compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rgalign.bench.rows import RESULTS
from rgalign.errors import DataError

Row = dict[str, Any]
Cell = tuple[tuple[str, Any], ...]

SHAPE = (
    "benchmark", "variant", "step", "what", "target", "service", "arrivals", "note",
    "model", "dtype", "template", "catalogue", "split",
    "N", "D", "B", "K", "k", "T", "batch", "batch_prompts", "tokens", "prefix_tokens", "latent_dim", "intents",
    "features", "sessions", "prompts", "requests", "window", "max_rows", "threads", "workers", "rate", "factor", "qps",
    "deadline_ms",
)  # fmt: skip

# Measured value -> whether more of it is better. The first that a row has is what it is compared by.
MEASURES = {
    "call_us": False,
    "call_ms": False,
    "prompt_ms": False,
    "cpu_us_per_request": False,
    "seconds": False,
    "prompts_per_s": True,
    "sessions_per_s": True,
    "requests_per_s": True,
}
UNNAMED = ("benchmark", "variant", "step", "template", "dtype", "what", "service")
TIMES_MEASURED = ("repeats", "turns", "calls")
FEWEST = 3  # of an older row that does not say how often it was measured


def read_rows(path: Path) -> list[Row]:
    """Rows of a JSON Lines file in order, each with ``file``, its name.

    Raises:
        DataError: no such file, or a line that is no row (the message has its number).
    """
    if not path.is_file():
        raise DataError(where=str(path), required="a file of result rows", received="no such file")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(where=f"{path}:{number}", required="a JSON object", received=str(error)) from error
        if not isinstance(row, dict) or "benchmark" not in row:
            raise DataError(where=f"{path}:{number}", required="a row with `benchmark`", received=line[:60])
        rows.append({"file": path.name, **row})
    return rows


def read_directory(directory: Path = RESULTS) -> list[Row]:
    """Rows of every .jsonl file, file by file in the order of their names."""
    return [row for path in sorted(directory.glob("*.jsonl")) for row in read_rows(path)]


def cell(row: Mapping[str, Any]) -> Cell:
    return tuple((name, _plain(row[name])) for name in SHAPE if row.get(name) is not None and not _measured(row, name))


def _measured(row: Mapping[str, Any], name: str) -> bool:
    return name in MEASURES or isinstance(row[name], Mapping)


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list) else value


def cell_name(found: Cell) -> str:
    """The cell as words, values that need no name first."""
    bare = [str(value) for name, value in found if name in UNNAMED]
    named = [f"{name} {value}" for name, value in found if isinstance(value, int | float) and name != "benchmark"]
    return ", ".join([*bare, *named])


def latest(rows: Iterable[Row]) -> list[Row]:
    """The last row of every cell, in the order in which the cells first came."""
    return list({cell(row): row for row in rows}.values())


def machine(row: Row) -> str:
    hardware = row.get("hardware") or {}
    return f"{hardware.get('cpu')}, {hardware.get('cores')} cores, {hardware.get('instructions')}"


def by_machine(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows of each machine, that of the newest row first: times of two machines do not stand beside each other."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(machine(row), []).append(row)
    return dict(sorted(found.items(), key=lambda each: max(str(row.get("time")) for row in each[1]), reverse=True))


def of(rows: Iterable[Row], benchmark: str, **shape: Any) -> list[Row]:
    """The rows of a benchmark whose fields have these values."""
    return [
        row
        for row in rows
        if row["benchmark"] == benchmark and all(row.get(name) == value for name, value in shape.items())
    ]


def measure(row: Mapping[str, Any]) -> tuple[str, dict[str, float]] | None:
    """The value a row is compared by, with its percentiles (of a single number, itself); None if it has none."""
    for name in MEASURES:
        value = row.get(name)
        if isinstance(value, Mapping) and value.get("median"):
            return name, {each: float(value[each]) for each in ("median", "p20", "p80")}
        if isinstance(value, int | float) and value > 0:
            return name, dict.fromkeys(("median", "p20", "p80"), float(value))
    return None


def times_measured(row: Mapping[str, Any]) -> int:
    return next((int(row[name]) for name in TIMES_MEASURED if isinstance(row.get(name), int)), FEWEST)
