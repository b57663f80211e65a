"""rewards.parquet: what each candidate is worth to the ranker that has not seen its session's click."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rgalign.errors import DataError
from rgalign.files import atomic_path

FILE = "rewards.parquet"
LATENTS = "latents"
SCHEMA = pa.schema(
    [
        ("session_id", pa.string()),
        ("row", pa.int64()),  # of the session in its split
        ("teacher", pa.string()),
        ("query", pa.string()),
        ("reward", pa.float64()),  # expected NDCG@k
        ("margin", pa.float64()),  # score of the best clicked intent minus the best other's
        ("cosine", pa.float64()),  # of the latent queries of the candidate and of the clicked intent's title
        ("fold", pa.int64()),
        ("latent", pa.int64()),  # row of the store `latents`
    ]
)


def write_rewards(path: Path, columns: dict[str, object]) -> pa.Table:
    table = pa.table(columns, schema=SCHEMA)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return table


def read_rewards(run: Path) -> pa.Table:
    """The rewards of a finished run.

    Raises:
        DataError: no such run, or an unfinished one.
    """
    path = Path(run) / FILE
    if not path.is_file() or not (Path(run) / "done").is_file():
        received = f"no {FILE}" if not path.is_file() else "an unfinished run"
        raise DataError(where=str(run), required="a finished run of `rgalign train reward`", received=received)
    with pq.ParquetFile(path) as file:
        return file.read()
