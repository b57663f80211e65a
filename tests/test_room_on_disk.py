"""Writers that run out of room, really: the process may not write a file beyond a limit."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from rgalign.errors import DataError, RgalignError
from rgalign.room_on_disk import room_on_disk

LIMIT = 100_000
ROWS = np.random.default_rng(0).random(200_000)


@contextmanager
def limited() -> Iterator[None]:
    """No file of this process grows beyond LIMIT bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(ROWS.tobytes()),
        lambda path: np.save(path, ROWS),
        lambda path: pq.write_table(pa.table({"a": ROWS}), path),
        lambda path: save_file({"a": torch.from_numpy(ROWS)}, path),
        lambda path: torch.save({"a": torch.from_numpy(ROWS)}, path),
    ],
    ids=["bytes", "numpy", "parquet", "safetensors", "torch"],
)
def test_every_writer_s_full_disk_is_one_error(tmp_path: Path, write: Callable[[Path], object]) -> None:
    with pytest.raises(DataError, match=r"^here: required room to write") as error:
        with room_on_disk(Path("elsewhere")), room_on_disk(Path("here")), limited():
            write(tmp_path / "file.npy")
    assert str(error.value).count("room to write") == 1


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), RuntimeError("mat1 and mat2"), KeyError("a")])
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as found, room_on_disk(Path("here")):
        raise error
    assert found.value is error
    assert not isinstance(found.value, RgalignError)
