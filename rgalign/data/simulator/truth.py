"""Reading ``truth/``, and the ceilings that follow from it.

``true_probs`` are q_i = E[1{i relevant} / |relevant| | all that is observed] (``relevance.py``): the ranking by q is
the best there is for Recall@K, and its recall is the ceiling. Training never reads these files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rgalign.errors import DataError
from rgalign.intents import IntentCatalog

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class Truth:
    """S sessions in row order; intents as catalogue rows, -1 is padding.

    Args:
        session_ids: [S].
        noise: [S] bool: the click was noise.
        intents, probabilities: [S, 64], falling; probability 0 is padding.
        rest_mass: [S] what the other intents hold together.
        annotated, click: [S, P] the relevant intents, and what was clicked.
        problem: [S] name of the trouble behind the session.
    """

    session_ids: NDArray[np.str_]
    noise: NDArray[np.bool_]
    intents: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    rest_mass: NDArray[np.float64]
    annotated: NDArray[np.int64]
    click: NDArray[np.int64]
    problem: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.session_ids)

    def aligned(self, session_ids: NDArray[np.str_]) -> Truth:
        """The rows of ``session_ids``, in that order.

        Raises:
            DataError: a session without truth.
        """
        order = np.argsort(self.session_ids)
        place = np.searchsorted(self.session_ids, session_ids, sorter=order)
        rows = order[np.minimum(place, len(order) - 1)]
        absent = np.flatnonzero(self.session_ids[rows] != session_ids)
        if len(absent):
            raise DataError(where="truth", required="every session", received=f"no {str(session_ids[absent[0]])!r}")
        return Truth(**{name: values[rows] for name, values in self.__dict__.items()})


def read_truth(path: Path | str, split: str, catalog: IntentCatalog | None = None) -> Truth:
    """Reads ``PATH/truth/SPLIT``; ``catalog`` saves reading it again.

    Raises:
        DataError: the dataset has no truth: it was not simulated.
    """
    path = Path(path)
    shards = sorted((path / "truth" / split).glob("*.parquet"))
    if not shards:
        raise DataError(where=str(path / "truth" / split), required="a simulated dataset's truth", received="none")
    catalog = IntentCatalog.read_parquet(path / "intents.parquet") if catalog is None else catalog
    table = pa.concat_tables([pq.ParquetFile(shard).read() for shard in shards]).combine_chunks()
    flat_probabilities = _values(table, "true_probs").to_numpy().astype(np.float32)
    return Truth(
        np.asarray(table["session_id"].to_pylist()),
        table["noise"].to_numpy(),
        _padded(table, "true_intents", _rows(_values(table, "true_intents"), catalog), -1),
        _padded(table, "true_probs", flat_probabilities, 0),
        table["rest_mass"].to_numpy(),
        _padded(table, "annotated", _rows(_values(table, "annotated"), catalog), -1),
        _padded(table, "click", _rows(_values(table, "click"), catalog), -1),
        np.asarray(table["problem"].to_pylist()),
    )


def ceilings(truth: Truth, k: int = 3) -> dict[str, float]:
    """What the ranking by q reaches against the annotated labels, mean over sessions, and what it should on average.

    Returns:
        recall, ndcg, hit_rate at ``k`` of the best ranking; ``expected_recall``: the mean of the top-k mass, which
        ``recall`` scatters round.
    """
    top = truth.intents[:, :k]
    relevant = truth.annotated
    hits = ((top[:, :, None] == relevant[:, None, :]) & (top >= 0)[:, :, None]).any(axis=2)
    counts = (relevant >= 0).sum(axis=1)
    discount = 1.0 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(discount)[np.minimum(counts, k) - 1]
    return {
        f"recall@{k}": float((hits.sum(axis=1) / counts).mean()),
        f"ndcg@{k}": float((hits @ discount / ideal).mean()),
        f"hit_rate@{k}": float(hits.any(axis=1).mean()),
        f"expected_recall@{k}": float(truth.probabilities[:, :k].sum(axis=1, dtype=np.float64).mean()),
    }


def _values(table: pa.Table, column: str) -> pa.Array:
    return table[column].combine_chunks().flatten()


def _rows(ids: pa.Array, catalog: IntentCatalog) -> NDArray[np.int64]:
    encoded = ids.dictionary_encode()
    rows = np.asarray([catalog.rows[intent] for intent in encoded.dictionary.to_pylist()], np.int64)
    return np.asarray(rows[encoded.indices.to_numpy()])


def _padded(table: pa.Table, column: str, values: NDArray[T], padding: int) -> NDArray[T]:
    lengths = table[column].combine_chunks().value_lengths().to_numpy()
    inside = np.arange(max(1, int(lengths.max())))[None, :] < lengths[:, None]
    out = np.full(inside.shape, padding, values.dtype)
    out[inside] = values
    return out
