"""`rgalign data check`: every violation of the schema, counted, with examples; bad rows can be moved to quarantine.

    exit code   0 clean, or warnings only     1 rows that cannot be used     2 the dataset cannot be used

Shards are read one at a time; besides them only the session ids are in memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field as with_default
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rgalign.data.dataset import SPLITS, Dataset, read_shard
from rgalign.data.violations import ColumnRules, Mask, Severity, Violation
from rgalign.errors import DataError, RgalignError
from rgalign.files import atomic_path

MAX_EXAMPLES = 5
PERSONAL = "a personal value, not shown"


@dataclass(frozen=True)
class Example:
    """One row that breaks a rule: its number in the split (from 0, in shard order) and what stands there."""

    row: int
    received: str


@dataclass
class Finding:
    """One broken rule of one split: how many rows, and the first few. ``split`` is "" for the dataset itself."""

    split: str
    field: str
    severity: Severity
    required: str
    count: int = 0
    examples: list[Example] = with_default(default_factory=list)


@dataclass
class CheckReport:
    """Findings, worst first; ``num_bad`` rows cannot be used and, with a quarantine, have been moved there."""

    path: Path
    num_rows: dict[str, int] = with_default(default_factory=dict)
    num_bad: int = 0
    findings: list[Finding] = with_default(default_factory=list)

    @property
    def exit_code(self) -> int:
        severities = {finding.severity for finding in self.findings}
        return 2 if "fatal" in severities else 1 if "error" in severities else 0

    def describe(self) -> str:
        """The report as lines a person reads."""
        rows = ", ".join(f"{count} {split}" for split, count in self.num_rows.items()) or "no rows"
        lines = [f"{self.path}: {rows}; {self.num_bad} rows cannot be used"]
        for finding in self.findings:
            where = f"{finding.split}, {finding.field}" if finding.split else finding.field
            lines.append(f"{finding.severity:>7}  {where}: required {finding.required}; {finding.count} rows")
            lines += [f"{'':9}row {example.row}: {example.received}" for example in finding.examples]
        return "\n".join(lines)


def check_dataset(path: Path | str, quarantine: Path | None = None) -> CheckReport:
    """Checks a dataset directory.

    Args:
        quarantine: parquet file that bad rows are moved to: it is written first (``quarantine_split``,
            ``quarantine_row``, ``quarantine_fields``, ``quarantine_required`` and the row's own columns), then the
            shards without them. None changes nothing.

    Raises:
        DataError: the quarantine file exists.
    """
    path = Path(path)
    report = CheckReport(path)
    if quarantine is not None and quarantine.exists():
        raise DataError(where=str(quarantine), required="a file that does not exist", received="one that does")
    try:
        dataset = Dataset.open(path)
    except RgalignError as error:
        report.findings.append(Finding("", error.where, "fatal", error.required, 1, [Example(0, error.received)]))
        return report
    rules = ColumnRules(dataset.schema, dataset.catalog)
    _check_types(dataset, rules, report)
    if report.exit_code == 2:
        return report
    bad = _check_rows(dataset, rules, report)
    _check_time_order(dataset, report)
    report.num_bad = sum(len(rows) for rows in bad.values())
    report.findings.sort(key=lambda finding: ("fatal", "error", "warning").index(finding.severity))
    if quarantine is not None and report.num_bad:
        _move(bad, quarantine)
    return report


BadRows = dict[
    Path, dict[int, tuple[str, int, list[str], list[str]]]
]  # shard -> row in it -> split, row, what is wrong


def _check_types(dataset: Dataset, rules: ColumnRules, report: CheckReport) -> None:
    for split in SPLITS:
        for shard in dataset.shards(split):
            arrow = pq.read_schema(shard)
            report.num_rows[split] = report.num_rows.get(split, 0) + pq.read_metadata(shard).num_rows
            for name, (required, accepts) in rules.column_types().items():
                received = str(arrow.field(name).type) if name in arrow.names else "no such column"
                if name not in arrow.names or not accepts(arrow.field(name).type):
                    finding = Finding(split, name, "fatal", required, 0, [Example(0, f"{received} in {shard.name}")])
                    report.findings.append(finding)
    if not report.num_rows.get("train"):
        report.findings.append(Finding("train", "*.parquet", "fatal", "at least one row", 0, [Example(0, "none")]))


def _check_rows(dataset: Dataset, rules: ColumnRules, report: CheckReport) -> BadRows:
    """Counts every violation; returns the rows that cannot be used."""
    found: dict[tuple[str, str, str], Finding] = {}
    bad: BadRows = defaultdict(dict)
    repeats = _repeated_sessions(dataset)
    columns = list(rules.column_types())
    personal = {name for feature in dataset.schema.features if feature.pii for name in feature.columns()}
    for split in SPLITS:
        start = 0
        for shard in dataset.shards(split):
            table = read_shard(shard, columns).combine_chunks()
            for violation in (*rules.broken(table), _repeated(table, repeats[shard]), _unsorted(table)):
                rows = np.flatnonzero(violation.rows)
                if not len(rows):
                    continue
                key = (split, violation.field, violation.required)
                finding = found.setdefault(key, Finding(split, violation.field, violation.severity, violation.required))
                finding.count += len(rows)
                for row in rows[: MAX_EXAMPLES - len(finding.examples)]:
                    received = PERSONAL if violation.field in personal else violation.received(int(row))
                    finding.examples.append(Example(start + int(row), received))
                if violation.severity == "error":
                    for row in rows.tolist():
                        _, _, fields, required = bad[shard].setdefault(row, (split, start + row, [], []))
                        fields.append(violation.field)
                        required.append(violation.required)
            start += len(table)
    report.findings += found.values()
    return bad


def _repeated_sessions(dataset: Dataset) -> dict[Path, Mask]:
    """Shard -> rows whose session id stands in an earlier row, of any split."""
    shards = [shard for split in SPLITS for shard in dataset.shards(split)]
    ids = [read_shard(shard, ["session_id"]).column(0).cast(pa.string()) for shard in shards]
    chunks = [chunk for column in ids for chunk in column.chunks]
    codes = pa.chunked_array(chunks, pa.string()).combine_chunks().dictionary_encode().indices
    first = np.zeros(len(codes), np.bool_)
    first[np.unique(codes.fill_null(-1).to_numpy(zero_copy_only=False), return_index=True)[1]] = True
    repeated = ~first & np.asarray(codes.is_valid())
    ends = np.cumsum([len(column) for column in ids])
    return {shard: repeated[end - len(column) : end] for shard, column, end in zip(shards, ids, ends, strict=True)}


def _repeated(table: pa.Table, rows: Mask) -> Violation:
    return Violation("session_id", "error", "unique ids (the first row stays)", rows, table.column("session_id"))


def _unsorted(table: pa.Table) -> Violation:
    times = table.column("ts").combine_chunks().cast(pa.timestamp("us")).cast(pa.int64())
    values = times.fill_null(np.iinfo(np.int64).min).to_numpy(zero_copy_only=False)
    rows = np.zeros(len(values), np.bool_)
    rows[1:] = values[1:] < np.maximum.accumulate(values)[:-1]
    rows &= np.asarray(times.is_valid())
    return Violation("ts", "warning", "ascending times (splits and views by time rely on it)", rows, table.column("ts"))


def _check_time_order(dataset: Dataset, report: CheckReport) -> None:
    """Train, valid and test one after the other: else a later session teaches what an earlier one is tested on."""
    spans = [(split, *_span(dataset, split)) for split in SPLITS if report.num_rows.get(split)]
    for (before, _, end), (after, start, _) in pairwise(spans):
        if start is not None and end is not None and start < end:
            received = f"{before} ends {end}, {after} starts {start}"
            required = f"times after those of {before}"
            report.findings.append(Finding(after, "ts", "warning", required, 0, [Example(0, received)]))


def _span(dataset: Dataset, split: str) -> tuple[datetime | None, datetime | None]:
    span = pc.min_max(dataset.table(split, ["ts"]).column("ts").cast(pa.timestamp("us")))
    return span["min"].as_py(), span["max"].as_py()


def _move(bad: BadRows, quarantine: Path) -> None:
    """Writes the bad rows to quarantine, then each of their shards anew without them."""
    tables = list(_quarantined(bad))
    with atomic_path(quarantine) as temporary:
        pq.write_table(pa.concat_tables(tables, promote_options="permissive"), temporary)
    for shard, rows in bad.items():
        table = read_shard(shard)
        keep = np.ones(len(table), np.bool_)
        keep[list(rows)] = False
        with atomic_path(shard) as temporary:
            pq.write_table(table.filter(pa.array(keep)), temporary, compression="zstd")


def _quarantined(bad: BadRows) -> Iterator[pa.Table]:
    for shard, rows in bad.items():
        order = sorted(rows)
        table = read_shard(shard).take(pa.array(order))
        splits, numbers, fields, required = zip(*(rows[row] for row in order), strict=True)
        added = {"split": splits, "row": numbers, "fields": fields, "required": required}
        columns = {f"quarantine_{name}": pa.array(list(values)) for name, values in added.items()}
        yield pa.table({**columns, **{name: table.column(name) for name in table.column_names}})
