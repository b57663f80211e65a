"""What the batcher refuses: configurations, calls and buffers that cannot work."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rgalign.batcher import Batch, BatchBuffers, Batcher, BatcherConfig
from rgalign.config import parse_config
from rgalign.errors import ConfigError, DataError


def model(batch: Batch) -> NDArray[np.float64]:
    return np.ones((batch.num_rows, 1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_row": 3}, "did you mean 'max_rows'"),
        ({"token_buckets": [64, 32]}, "ascending"),
        ({"max_request_tokens": 9000}, "one request of max_request_tokens"),
        ({"token_buckets": [64, 128]}, "one request of max_request_tokens"),
        ({"token_buckets": [512, 1024]}, "must hold max_tokens"),
        ({"row_buckets": [32]}, "padded layout"),
        ({"layout": "padded", "row_buckets": [8]}, "must hold max_rows"),
        ({"layout": "padded", "row_buckets": [32], "max_tokens": 1024}, "one request of max_request_tokens"),
        ({"max_waste": 1.0}, "max_waste"),
        ({"max_queue": 0}, "max_queue"),
        ({"deadline_ms": float("inf")}, "deadline_ms"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(BatcherConfig, values, where="test")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"token_ids": [[1, 2]]}, "submit token_ids"),
        ({"token_ids": np.ones((2, 2), np.int32)}, "submit token_ids"),
        ({"token_ids": [1.5]}, "submit token_ids"),
        ({"token_ids": [1 << 31]}, "submit token_ids"),
        ({"token_ids": "text"}, "submit token_ids"),
        ({"token_ids": [1], "deadline_ms": float("nan")}, "submit deadline_ms"),
        ({"token_ids": [1], "priority": "urgent"}, "submit priority"),
    ],
)
def test_a_call_that_makes_no_sense_is_refused(arguments: dict[str, Any], message: str) -> None:
    with Batcher(BatcherConfig(), model) as batcher:
        with pytest.raises(DataError, match=message):
            batcher.submit(**arguments)
        assert batcher.counters().submitted == 0
        assert batcher._delivery.pending == {}


@pytest.mark.parametrize(
    ("buffers", "message"),
    [
        ([], "one for each of 1 workers"),
        ([BatchBuffers(*(np.zeros(size, np.int64) for size in (8, 8, 3)))], "token_ids"),
        ([BatchBuffers(*(np.zeros(size, np.int32) for size in (8, 7, 3)))], "positions"),
        ([BatchBuffers(*(np.zeros(size, np.int32) for size in (8, 8, 2)))], "cu_seqlens"),
        ([BatchBuffers(*(np.zeros(2 * size, np.int32)[::2] for size in (8, 8, 3)))], "token_ids"),
    ],
)
def test_buffers_of_another_form_are_refused(buffers: Sequence[BatchBuffers], message: str) -> None:
    config = BatcherConfig(max_rows=2, max_tokens=8, max_request_tokens=8)
    with pytest.raises(DataError, match=message):
        Batcher(config, model, buffers=buffers)
