"""One session without a table: the bits and counters of the table's way, on simulated sessions and made-up ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rgalign.data.batch import SessionBatch
from rgalign.data.dataset import Dataset
from rgalign.data.encode import NumericStats, SessionEncoder
from rgalign.data.encode_row import RowEncoder
from rgalign.data.simulator import SimulatorConfig, simulate
from rgalign.intents import IntentCatalog
from rgalign.recommender.context import ContextReader
from rgalign.schema import FeatureSchema

SCHEMA = FeatureSchema.model_validate(
    {
        "name": "tiny",
        "vocabularies": {"status": {"3": "paid", "8": "shipped"}},
        "features": [
            {"kind": "categorical", "name": "status", "dimension": "context", "vocabulary": "status"},
            {"kind": "categorical", "name": "known", "dimension": "context", "vocabulary": "status", "oov": "drop"},
            {"kind": "numerical", "name": "days", "dimension": "context", "transform": "log1p"},
            {"kind": "numerical", "name": "age", "dimension": "profile", "minimum": 0, "maximum": 10},
            {"kind": "sequence", "name": "seen", "dimension": "behaviour", "vocabulary": "intents", "max_length": 3},
            {
                "kind": "sequence",
                "name": "all",
                "dimension": "behaviour",
                "vocabulary": "intents",
                "oov": "unknown",
                "max_length": 3,
            },
            {
                "kind": "group",
                "name": "past",
                "dimension": "behaviour",
                "members": [
                    {"kind": "categorical", "name": "past_intents", "vocabulary": "intents"},
                    {"kind": "categorical", "name": "past_status", "vocabulary": "status", "oov": "drop"},
                    {"kind": "numerical", "name": "past_hours"},
                    {"kind": "numerical", "name": "past_price", "transform": "identity"},
                ],
                "age": "past_hours",
                "window_hours": 100,
                "max_length": 3,
            },
        ],
    }
)
CATALOG = IntentCatalog(("a", "b", "c"), ("A", "B", "C"), ("",) * 3)
STATS = NumericStats({"days": (0.3, 1.7), "age": (2.0, 0.7), "past_price": (1.0, 3.0)})
STATUS = st.sampled_from([None, "3", "8", "9", ""])
INTENT = st.sampled_from([None, "a", "b", "c", "z"])
NUMBER = st.none() | st.floats(-1e9, 1e9, allow_nan=False)
STEP = st.tuples(INTENT, STATUS, NUMBER, NUMBER)


def tensors(batch: SessionBatch) -> dict[str, Tensor]:
    named = {f"sequence {name}": codes for name, codes in batch.sequences.items()}
    named |= {f"{name}.{m}": values for name, members in batch.groups.items() for m, values in members.items()}
    named |= {f"length {name}": lengths for name, lengths in batch.group_lengths.items()}
    rest = ("categorical", "numerical", "missing", "clicked")
    return named | {name: getattr(batch, name) for name in rest}


def assert_same(encoder: SessionEncoder, rows: RowEncoder, row: Mapping[str, Any], table: pa.Table) -> None:
    encoder.counters.clear()
    expected = encoder.encode(table)
    counted = dict(encoder.counters)
    encoder.counters.clear()
    found = rows.encode(row)
    assert dict(encoder.counters) == counted
    assert found.candidates is None is found.latent
    wanted, got = tensors(expected), tensors(found)
    assert wanted.keys() == got.keys()
    for name, tensor in wanted.items():
        assert got[name].dtype == tensor.dtype, name
        assert got[name].shape == tensor.shape, name
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=0, equal_nan=True)


@settings(deadline=None)
@given(
    status=STATUS,
    known=STATUS,
    days=NUMBER,
    age=NUMBER,
    seen=st.lists(INTENT, max_size=5),
    everything=st.lists(INTENT, max_size=5),
    past=st.lists(STEP, max_size=5),
)
def test_any_context_gives_the_table_s_bits_and_counters(
    status: str | None,
    known: str | None,
    days: float | None,
    age: float | None,
    seen: list[str | None],
    everything: list[str | None],
    past: list[tuple[Any, ...]],
) -> None:
    members = ("past_intents", "past_status", "past_hours", "past_price")
    context = {"status": status, "known": known, "days": days, "age": age, "seen": seen, "all": everything}
    context |= {name: [step[place] for step in past] for place, name in enumerate(members)}
    encoder = SessionEncoder(SCHEMA, CATALOG, STATS)
    reader = ContextReader(encoder.schema)
    row = reader.read(context)
    assert_same(encoder, RowEncoder(encoder), row, reader.table(row))


def test_simulated_sessions_as_their_parquet_files_have_them(tmp_path: Path) -> None:
    simulate(SimulatorConfig(num_sessions=300, num_intents=230), tmp_path / "data", progress=False)
    dataset = Dataset.open(tmp_path / "data")
    table = dataset.table("train", dataset.schema.columns)
    encoder = SessionEncoder(dataset.schema, dataset.catalog, NumericStats.fit(table, dataset.schema))
    rows, reader = RowEncoder(encoder), ContextReader(encoder.schema)
    for number, context in enumerate(table.slice(0, 150).to_pylist()):
        assert_same(encoder, rows, reader.read(context), table.slice(number, 1))


def test_a_number_without_statistics_is_refused() -> None:
    encoder = SessionEncoder(SCHEMA, CATALOG, NumericStats({}))
    with pytest.raises(Exception, match="statistics of days"):
        RowEncoder(encoder).encode(ContextReader(encoder.schema).read({}))
