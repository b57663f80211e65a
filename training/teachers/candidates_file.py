"""candidates.parquet: one row a session and teacher; what could not be used is there with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rgalign.errors import DataError
from rgalign.files import atomic_path

FILE = "candidates.parquet"
SCHEMA = pa.schema(
    [
        ("session_id", pa.string()),
        ("row", pa.int64()),
        ("teacher", pa.string()),
        ("query", pa.string()),
        ("kept", pa.bool_()),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True)
class Candidate:
    """Args: row: the session's row within its split; reason: why it is not kept, "" if it is."""

    session_id: str
    row: int
    teacher: str
    query: str
    reason: str = ""

    @property
    def kept(self) -> bool:
        return not self.reason


def write_candidates(path: Path, candidates: Sequence[Candidate]) -> None:
    rows = [{**asdict(each), "kept": each.kept} for each in candidates]
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary, compression="zstd")


def read_kept(run: Path) -> pa.Table:
    """The usable candidates of a finished generation.

    Raises:
        DataError: no such run, an unfinished one, or one without a usable candidate.
    """
    path = Path(run) / FILE
    if not path.is_file() or not (Path(run) / "done").is_file():
        received = f"no {FILE}" if not path.is_file() else "an unfinished run"
        raise DataError(where=str(run), required="a finished run of `rgalign train generate`", received=received)
    with pq.ParquetFile(path) as file:
        table = file.read()
    kept = table.filter(table.column("kept"))
    if not len(kept):
        required = "at least one usable candidate"
        raise DataError(where=str(path), required=required, received=f"{len(table)} that the validator refused")
    return kept
