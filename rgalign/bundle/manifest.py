"""The manifest of a bundle: size and sha256 of every file, what made them, and how they are put together.

    seal = sha256 of all other entries; it is the bundle's hash, which every answer names

A manifest is the bytes that were written, to the last: no other spelling of the same values is accepted.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from rgalign.chat_format import PromptTemplate
from rgalign.config import Config, parse_config
from rgalign.errors import DataError
from rgalign.files import sha256_file, sha256_json
from rgalign.models import RankerConfig
from rgalign.reasoner.engine.quantize import ArtifactDtype

FORMAT = 1
MANIFEST, SEAL = "manifest.json", "seal"
MAX_MANIFEST_BYTES = 1 << 24
SHA256 = r"^[0-9a-f]{64}$"

SCHEMA, CATALOGUE, INDEX = "schema.yaml", "intents.parquet", "index"
USER_TOWER, QUERY_TOWER = "user_tower.safetensors", "query_tower.safetensors"
ENGINE, TOKENIZER = "engine", "tokenizer.json"


class File(Config):
    """What a file must be."""

    size: int = Field(ge=0)
    sha256: str = Field(pattern=SHA256)


class Moments(Config):
    """Of a number in the training sessions, after its transform."""

    mean: float = Field(allow_inf_nan=False)
    std: float = Field(gt=0, allow_inf_nan=False)


class Calibration(Config):
    """From scores to probabilities, fitted on validation sessions: p = softmax over the catalogue of scale * score.

    Args:
        threshold: top probability from which on intents are worth showing.
    """

    scale: float = Field(ge=0, allow_inf_nan=False)
    threshold: float = Field(ge=0, le=1)


class ReasonerPart(Config):
    """What a bundle with a reasoner says of it and of its prompts.

    Args:
        engine: hash of the engine (``rgalign.reasoner.engine.artifact.Manifest.hash``); prompts: of the PromptEncoder.
        eos_token_id: appended to every prompt with pooling ``eos``.
        trained_on: provenance of the latent queries that the query tower was trained on.
    """

    engine: str = Field(pattern=SHA256)
    dtype: ArtifactDtype
    hidden_size: int = Field(ge=1)
    pooling: Literal["ltp", "eos"]
    eos_token_id: int | None = Field(default=None, ge=0)
    template: PromptTemplate
    chat_format: str
    max_tokens: int = Field(ge=1)
    include_pii: bool
    prompts: str = Field(pattern=SHA256)
    trained_on: dict[str, Any]


class Manifest(Config):
    """Args:
    ranker: sha256 of the weights of the training run; model: its configuration.
    omega: ω where there is a latent query.
    index: provenance that the intent index must have, and every index that is swapped in.
    full, user_only: calibration of scores with a latent query and at ω = 1.
    """

    format: int = Field(ge=FORMAT, le=FORMAT)
    ranker: str = Field(pattern=SHA256)
    model: RankerConfig
    dim: int = Field(ge=1)
    omega: float = Field(gt=0, le=1)
    statistics: dict[str, Moments]
    schema_hash: str = Field(pattern=SHA256)
    catalogue: str = Field(pattern=SHA256)
    index: dict[str, str]
    full: Calibration | None
    user_only: Calibration
    reasoner: ReasonerPart | None
    files: dict[str, File]
    seal: str = Field(pattern=SHA256)

    @property
    def hash(self) -> str:
        """Of the whole bundle."""
        return self.seal


def manifest_bytes(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n").encode()


def sealed(values: dict[str, Any]) -> dict[str, Any]:
    """The values with their seal."""
    content = {name: value for name, value in values.items() if name != SEAL}
    return {**content, SEAL: sha256_json(content)}


def read_manifest(directory: Path) -> Manifest:
    """The manifest, if it is exactly what was written. Files are not looked at.

    Raises:
        DataError: no manifest, or one that was changed in any byte.
    """
    path = Path(directory) / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise DataError(where=str(path), required="the manifest of a bundle", received="no such file")
    with open(path, "rb") as stream:
        data = stream.read(MAX_MANIFEST_BYTES + 1)
    try:
        values = json.loads(data)
        written = isinstance(values, dict) and manifest_bytes(values) == data
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, NaN, nested without end
        raise DataError(where=str(path), required="JSON", received=type(error).__name__) from error
    if not written:
        raise DataError(where=str(path), required="the bytes that were written", received="other bytes")
    if values.get(SEAL) != sealed(values)[SEAL]:
        required = f"seal {sealed(values)[SEAL][:12]} of the other entries"
        raise DataError(where=str(path), required=required, received=str(values.get(SEAL))[:12])
    return parse_config(Manifest, values, where=str(path), error_type=DataError)


def describe_files(directory: Path) -> dict[str, File]:
    """Every file below a directory but the manifest, by its path with ``/``.

    Raises:
        DataError: a link, or what is no plain file.
    """
    found: dict[str, File] = {}
    for name in plain_files(directory):
        if name != MANIFEST:
            path = directory / name
            found[name] = File(size=path.stat().st_size, sha256=sha256_file(path))
    return found


def plain_files(directory: Path) -> list[str]:
    names = []
    for folder, folders, files in os.walk(directory):
        for name in (*folders, *files):
            path = Path(folder) / name
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise DataError(where=str(path), required="a plain file or directory", received="a link or device")
        names += [(Path(folder) / name).relative_to(directory).as_posix() for name in files]
    return sorted(names)


def check_files(directory: Path, manifest: Manifest) -> None:
    """Compares all files with the manifest: none missing, none more, each of its size and sha256.

    Raises:
        DataError: the first that differs.
    """
    found = set(plain_files(directory)) - {MANIFEST}
    for name in sorted(found ^ manifest.files.keys()):
        required = "a file of the manifest" if name in found else "a file"
        received = "one that it does not name" if name in found else "no such file"
        raise DataError(where=str(directory / name), required=required, received=received)
    for name, file in manifest.files.items():  # sizes first: cheap, and a cut file is named at once
        size = (directory / name).stat().st_size
        if size != file.size:
            raise DataError(where=str(directory / name), required=f"{file.size} bytes", received=str(size))
    for name, file in manifest.files.items():
        received = sha256_file(directory / name)
        if received != file.sha256:
            required = f"sha256 {file.sha256[:12]}"
            raise DataError(where=str(directory / name), required=required, received=received[:12])
