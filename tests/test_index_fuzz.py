"""Index files with every bit of the first 512 bytes flipped and cut at every length to 4,096: refused, or read equal.

The manifest's hashes catch any change of the tensors, so a second round forges them: the file's own structure is then
all that stands between its bytes and the process.
"""

import json
import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from rgalign.errors import DataError
from rgalign.files import sha256_json
from rgalign.index import IntentIndex, build_index, read_index, write_index
from rgalign.index.storage import MANIFEST, read_manifest
from rgalign.kernels.score_reference import unit

NUM_INTENTS, DIM = 64, 20


@pytest.fixture
def index() -> IntentIndex:
    vectors = unit(torch.randn(NUM_INTENTS, DIM, generator=torch.Generator().manual_seed(0)))
    ids = [f"i{number:02d}" for number in range(NUM_INTENTS)]
    return build_index(ids, [f"title {name}" for name in ids], vectors, {"intent_tower": "a" * 64})


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """Thousands of small writes: where there is a file system in memory, on it."""
    shared = Path("/dev/shm")
    with TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else tmp_path) as directory:
        yield Path(directory)


def flipped(data: bytes) -> Iterator[bytes]:
    for position in range(8 * min(512, len(data))):
        changed = bytearray(data)
        changed[position // 8] ^= 1 << position % 8
        yield bytes(changed)


def truncated(data: bytes) -> Iterator[bytes]:
    yield from (data[:length] for length in range(min(4097, len(data))))


def outcome(path: Path, index: IntentIndex) -> str:
    """Anything but a DataError, a crash of the process included, fails the test."""
    try:
        found = read_index(path)
    except DataError:
        return "refused"
    assert (found.ids, found.titles) == (index.ids, index.titles)
    assert torch.equal(found.vectors, index.vectors)
    assert found.provenance == index.provenance
    return "equal"


@pytest.mark.parametrize("file", ["manifest", "tensors"])
def test_any_change_of_the_files_is_refused_or_without_effect(file: str, index: IntentIndex, in_memory: Path) -> None:
    path = write_index(index, in_memory / "index")
    target = path / (MANIFEST if file == "manifest" else read_manifest(path).file)
    data = target.read_bytes()
    assert outcome(path, index) == "equal"
    count = 0
    for changed in (*flipped(data), *truncated(data)):
        target.write_bytes(changed)
        assert outcome(path, index) == "refused"
        count += 1
    assert count == 8 * min(len(data), 512) + min(len(data), 4097)
    assert count > (3000 if file == "manifest" else 8000)


def test_a_file_whose_hashes_are_forged_never_crashes(index: IntentIndex, in_memory: Path) -> None:
    path = write_index(index, in_memory / "index")
    target = path / read_manifest(path).file
    values = json.loads((path / MANIFEST).read_text())
    values.pop("manifest_sha256")
    data = target.read_bytes()
    refused = 0
    for changed in (*list(flipped(data))[::3], *list(truncated(data))[::16]):
        target.write_bytes(changed)
        forged = {**values, "size": max(1, len(changed)), "sha256": sha256(changed).hexdigest()}
        forged["manifest_sha256"] = sha256_json(forged)
        (path / MANIFEST).write_text(json.dumps(forged, separators=(",", ":"), sort_keys=True) + "\n")
        try:
            read_index(path)
        except DataError:
            refused += 1
    assert refused > 1200
