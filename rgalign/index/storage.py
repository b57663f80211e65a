"""IntentIndex on disk: a directory with one tensor file and a manifest, whole or absent.

    index-<hash>.safetensors   vectors [N, D], scales [N] with int8, and the names as bytes:
                               ids, titles [bytes] uint8 (UTF-8, end to end), id_ends, title_ends [N] int64
    manifest.json              format, precision, N, D; name, size and sha256 of the tensors; provenance; its own sha256

The tensors are in place under a name of their own before the manifest that names them is renamed, so a reader, or a
writer that is killed at any point, leaves the former index or the next one. A lock keeps two writers of one directory
apart. The vectors are memory-mapped: pages come from disk as scoring touches them, and processes on one machine share
them. Replace an index by writing it; never write into the file of one in use.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rgalign.config import Config, parse_config
from rgalign.errors import DataError
from rgalign.files import atomic_path, sha256_file, sha256_json, write_atomic
from rgalign.index.intent_index import IntentIndex
from rgalign.index.precision import PRECISIONS, Precision

MANIFEST, LOCK = "manifest.json", ".lock"
UNPUBLISHED = ".index.tmp"
TENSORS = "index-*.safetensors"
FORMAT = 1
MAX_MANIFEST_BYTES = 1 << 20


class Manifest(Config):
    """What the tensor file must be. ``provenance``: hash of what made the vectors, by name."""

    format: int = Field(ge=FORMAT, le=FORMAT)
    precision: Precision
    num_intents: int = Field(ge=1)
    dim: int = Field(ge=1)
    file: str = Field(pattern=r"^index-[0-9a-f]{16}\.safetensors$")
    size: int = Field(ge=1)
    sha256: str
    provenance: dict[str, str]
    manifest_sha256: str


def write_index(index: IntentIndex, path: Path) -> Path:
    """Writes the directory ``path``, replacing a former index.

    Raises:
        DataError: another process is writing there.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    with _only_writer(path):
        unpublished = path / UNPUBLISHED
        save_file(_tensors(index), unpublished)
        digest = sha256_file(unpublished)
        name = TENSORS.replace("*", digest[:16])
        values: dict[str, Any] = {
            "format": FORMAT,
            "precision": str(index.vectors.dtype).removeprefix("torch."),
            "num_intents": len(index),
            "dim": index.dim,
            "file": name,
            "size": unpublished.stat().st_size,
            "sha256": digest,
            "provenance": index.provenance,
        }
        with atomic_path(path / name) as temporary:
            os.replace(unpublished, temporary)
        write_atomic(path / MANIFEST, _manifest_bytes({**values, "manifest_sha256": sha256_json(values)}))
        for other in (*path.glob(TENSORS), *path.glob(".*.tmp")):  # former ones, and those of a killed writer
            if other.name != name:
                other.unlink()
    return path


def read_index(path: Path, *, require: Mapping[str, str] | None = None) -> IntentIndex:
    """Checks and opens an index; its vectors stay on disk until they are used.

    Args:
        require: provenance that the index must have, such as the ``intent_tower`` of the ranker it will serve.

    Raises:
        DataError: not an index, one that is truncated or damaged in any bit, or whose rows cannot be scored.
        ProvenanceError: vectors of another model than ``require`` asks for.
    """
    path = Path(path)
    while True:
        manifest = read_manifest(path)
        try:
            index = _open(path / manifest.file, manifest)
        except DataError:
            if read_manifest(path) == manifest:
                raise
            continue  # a writer replaced the index meanwhile and removed the former file
        index.require(require or {}, where=str(path))
        return index


def _open(file: Path, manifest: Manifest) -> IntentIndex:
    required = f"{manifest.size} bytes of sha256 {manifest.sha256[:12]}"
    if file.is_symlink() or not file.is_file():
        raise DataError(where=str(file), required=required, received="no such file")
    if file.stat().st_size != manifest.size:
        raise DataError(where=str(file), required=required, received=f"{file.stat().st_size} bytes")
    received = sha256_file(file)
    if received != manifest.sha256:
        raise DataError(where=str(file), required=required, received=f"sha256 {received[:12]}")
    tensors = _load(file, manifest)
    ids, titles = (_strings(file, tensors, name) for name in ("id", "title"))
    return IntentIndex(ids, titles, tensors["vectors"], tensors.get("scales"), manifest.provenance)


def read_manifest(path: Path) -> Manifest:
    """The manifest, if it is exactly what :func:`write_index` wrote.

    Raises:
        DataError: no manifest, or one that was changed in any byte.
    """
    file = Path(path) / MANIFEST
    if file.is_symlink() or not file.is_file():
        raise DataError(where=str(file), required="the manifest of an intent index", received="no such file")
    with open(file, "rb") as stream:
        data = stream.read(MAX_MANIFEST_BYTES + 1)
    try:
        values = json.loads(data)
        written = _manifest_bytes(values) == data
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, nested without end
        raise DataError(where=str(file), required="JSON", received=type(error).__name__) from error
    if not written or not isinstance(values, dict):
        raise DataError(where=str(file), required="the bytes that were written", received="other bytes")
    manifest = parse_config(Manifest, values, where=str(file), error_type=DataError)
    content = {name: value for name, value in values.items() if name != "manifest_sha256"}
    if sha256_json(content) != manifest.manifest_sha256:
        required = f"sha256 {manifest.manifest_sha256[:12]} of the other entries"
        raise DataError(where=str(file), required=required, received=sha256_json(content)[:12])
    return manifest


def _manifest_bytes(values: Any) -> bytes:
    return (json.dumps(values, separators=(",", ":"), sort_keys=True) + "\n").encode()


@contextmanager
def _only_writer(path: Path) -> Iterator[None]:
    descriptor = os.open(path / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(where=str(path), required="no other writer", received="one at work") from error
        yield
    finally:
        os.close(descriptor)


def _tensors(index: IntentIndex) -> dict[str, Tensor]:
    tensors = {"vectors": index.vectors.cpu().contiguous()}
    if index.scales is not None:
        tensors["scales"] = index.scales.cpu().contiguous()
    for name, strings in (("id", index.ids), ("title", index.titles)):
        encoded = [string.encode() for string in strings]
        lengths = torch.tensor([len(each) for each in encoded], dtype=torch.int64)
        tensors[f"{name}s"] = torch.frombuffer(bytearray(b"".join(encoded)), dtype=torch.uint8)
        tensors[f"{name}_ends"] = lengths.cumsum(0)
    return tensors


def _load(file: Path, manifest: Manifest) -> dict[str, Tensor]:
    """The tensors, if they are those that the manifest promises. Mapped, not read."""
    num_intents = manifest.num_intents
    expected: dict[str, tuple[torch.dtype, tuple[int, ...] | None]] = {
        "vectors": (PRECISIONS[manifest.precision], (num_intents, manifest.dim)),
        "ids": (torch.uint8, None),
        "titles": (torch.uint8, None),
        "id_ends": (torch.int64, (num_intents,)),
        "title_ends": (torch.int64, (num_intents,)),
    }
    if manifest.precision == "int8":
        expected["scales"] = (torch.float32, (num_intents,))
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise DataError(where=str(file), required="a safetensors file", received=str(error)) from error
    if tensors.keys() != expected.keys():
        raise DataError(where=str(file), required=f"tensors {sorted(expected)}", received=str(sorted(tensors)))
    for name, (dtype, shape) in expected.items():
        tensor = tensors[name]
        if tensor.dtype != dtype or (tensor.ndim != 1 if shape is None else tuple(tensor.shape) != shape):
            required = f"{name}: {dtype} of shape {'[bytes]' if shape is None else list(shape)}"
            received = f"{tensor.dtype} of shape {list(tensor.shape)}"
            raise DataError(where=str(file), required=required, received=received)
    return tensors


def _strings(file: Path, tensors: Mapping[str, Tensor], name: str) -> Sequence[str]:
    data, ends = bytes(tensors[f"{name}s"].numpy()), [0, *tensors[f"{name}_ends"].tolist()]
    if ends[-1] != len(data) or any(start > end for start, end in pairwise(ends)):
        raise DataError(where=str(file), required=f"{name}_ends that ascend to {len(data)}", received=f"{ends[-1]}")
    try:
        return [data[start:end].decode() for start, end in pairwise(ends)]
    except UnicodeDecodeError as error:
        raise DataError(where=str(file), required=f"{name}s in UTF-8", received=str(error)) from error
