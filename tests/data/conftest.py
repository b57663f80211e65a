"""A tiny dataset, and the folder of real data where there is one."""

import os
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rgalign.intents import IntentCatalog
from rgalign.schema import FeatureSchema


@pytest.fixture
def catalog() -> IntentCatalog:
    return IntentCatalog(("a", "b", "c"), ("Refund", "Delivery", "Voucher"), ("", "", ""))


@pytest.fixture
def schema() -> FeatureSchema:
    return FeatureSchema.model_validate(
        {
            "name": "tiny",
            "features": [
                {"kind": "categorical", "name": "page", "dimension": "context", "vocabulary": "page"},
                {"kind": "numerical", "name": "spend", "dimension": "profile", "minimum": 0, "maximum": 100},
                {
                    "kind": "sequence",
                    "name": "seen",
                    "dimension": "behaviour",
                    "vocabulary": "intents",
                    "max_length": 4,
                },
                {
                    "kind": "group",
                    "name": "past",
                    "dimension": "behaviour",
                    "members": [
                        {"kind": "categorical", "name": "past_intents", "vocabulary": "intents"},
                        {"kind": "numerical", "name": "past_hours", "unit": "hours"},
                    ],
                    "age": "past_hours",
                    "max_length": 3,
                },
            ],
            "vocabularies": {"page": ["home", "cart"]},
        }
    )


TYPES = {
    "ts": pa.timestamp("us"),
    "spend": pa.float64(),
    **dict.fromkeys(("seen", "past_intents", "candidates", "clicked"), pa.list_(pa.string())),
    "past_hours": pa.list_(pa.float64()),
}


@pytest.fixture
def sessions() -> Callable[..., pa.Table]:
    """sessions(count, start=0, changes): rows that break no rule; ``changes``: column -> {row: value}."""

    def make(count: int, start: int = 0, changes: dict[str, dict[int, Any]] | None = None) -> pa.Table:
        columns: dict[str, list[Any]] = {
            "session_id": [f"s{start + row}" for row in range(count)],
            "user_id": [f"u{row % 3}" for row in range(count)],
            "ts": [datetime(2024, 5, 1) + timedelta(minutes=start + row) for row in range(count)],
            "region": ["north"] * count,
            "page": [("home", "cart", None)[row % 3] for row in range(count)],
            "spend": [float(row % 7) for row in range(count)],
            "seen": [["a", "b"][: row % 3] for row in range(count)],
            "past_intents": [["c", "a"][: row % 3] for row in range(count)],
            "past_hours": [[0.5, 30.0][: row % 3] for row in range(count)],
            "candidates": [[] for _ in range(count)],
            "clicked": [["abc"[row % 3]] for row in range(count)],
        }
        for name, rows in (changes or {}).items():
            for row, value in rows.items():
                columns[name][row] = value
        return pa.table({name: pa.array(values, TYPES.get(name, pa.string())) for name, values in columns.items()})

    return make


@pytest.fixture
def shared_data() -> Path:
    """Real data that is not part of the project: $RGALIGN_SHARED_DATA, else ../shared/data beside the repository."""
    root = Path(__file__).parents[2]
    path = Path(os.environ.get("RGALIGN_SHARED_DATA") or root.parent / "shared" / "data")
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set RGALIGN_SHARED_DATA")
    return path
