"""LatentStore: latent queries on disk, addressed by the digest of the prompt that made them.

    store/
      provenance.json                  what made every vector: model, template, tokenizer, pooling, dtype
      chunks/00000.npy                 [n, D] float32 or float16, memory-mapped
      chunks/00000.digests.npy         [n, 16] uint8
      maps/<dataset fingerprint>.npy   [rows of a split] int64: row of the store of each session, in shard order
      maps/titles-<catalogue>.npy      [N, T] int64: rows of the texts of each intent (title_latents.py)

Sessions with equal prompts share a row, over splits and over datasets. A chunk is written whole or not at all, so an
interrupted run goes on at the first prompt that has no vector.
"""

from __future__ import annotations

from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from rgalign.data.dataset import Dataset
from rgalign.errors import ProvenanceError
from rgalign.files import atomic_path, read_json, sha256_json, write_json
from rgalign.intents import IntentCatalog
from rgalign.reasoner.prefix_tree import TokenIds

DIGEST_BYTES = 16
Latents = npt.NDArray[np.float32]


def prompt_digest(token_ids: TokenIds) -> bytes:
    return blake2b(np.ascontiguousarray(token_ids, dtype="<i4").tobytes(), digest_size=DIGEST_BYTES).digest()


class LatentStore:
    """Latent queries of one reasoner and template."""

    def __init__(self, path: Path, provenance: dict[str, Any]) -> None:
        self.path = path
        self.provenance = provenance
        self.hash = sha256_json(provenance)
        self._chunks: list[npt.NDArray[Any]] = []
        self._starts: list[int] = [0]
        self.known: dict[bytes, int] = {}  # digest -> row
        for file in sorted((path / "chunks").glob("[0-9]*.npy")):
            if not file.name.endswith(".digests.npy"):
                self._open_chunk(file)

    @classmethod
    def open(cls, path: Path) -> LatentStore:
        """Raises ProvenanceError where there is no store."""
        file = Path(path) / "provenance.json"
        if not file.is_file():
            required = "a directory of latent queries (`rgalign embed` writes one)"
            raise ProvenanceError(where=str(path), required=required, received="no provenance.json")
        return cls(Path(path), read_json(file))

    @classmethod
    def create(cls, path: Path, provenance: dict[str, Any]) -> LatentStore:
        """Opens or makes the store; refuses vectors of another origin beside those that are there."""
        file = Path(path) / "provenance.json"
        if not file.is_file():
            (Path(path) / "chunks").mkdir(parents=True, exist_ok=True)
            write_json(file, provenance)
        store = cls.open(path)
        store.require(provenance)
        return store

    def require(self, provenance: dict[str, Any]) -> None:
        """Raises ProvenanceError naming the first thing that differs."""
        for key in sorted(set(provenance) | set(self.provenance)):
            ours, theirs = self.provenance.get(key), provenance.get(key)
            if ours != theirs:
                received = f"{key} {ours!r}"
                raise ProvenanceError(where=str(self.path), required=f"{key} {theirs!r}", received=received)

    def __len__(self) -> int:
        return self._starts[-1]

    @cached_property
    def dim(self) -> int:
        return int(self.provenance["dim"])

    def append(self, digests: list[bytes], latents: npt.NDArray[Any]) -> None:
        """Writes one chunk of new vectors: [n, D] beside their n digests."""
        file = self.path / "chunks" / f"{len(self._chunks):05d}.npy"
        with atomic_path(file.with_suffix(".digests.npy")) as temporary, open(temporary, "wb") as stream:
            np.save(stream, np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, DIGEST_BYTES))
        with atomic_path(file) as temporary, open(temporary, "wb") as stream:
            np.save(stream, latents)
        self._open_chunk(file)

    def _open_chunk(self, file: Path) -> None:
        chunk = np.load(file, mmap_mode="r", allow_pickle=False)
        digests = np.load(file.with_suffix(".digests.npy"), allow_pickle=False)
        if len(digests) != len(chunk) or chunk.shape[1] != self.dim:
            received = f"{len(digests)} digests, vectors {chunk.shape}"
            raise ProvenanceError(where=str(file), required=f"one digest a vector of {self.dim}", received=received)
        self.known.update((digest.tobytes(), len(self) + row) for row, digest in enumerate(digests))
        self._chunks.append(chunk)
        self._starts.append(len(self) + len(chunk))

    def write_map(self, dataset: Dataset, split: str, rows: npt.NDArray[np.int64]) -> None:
        with atomic_path(self._map_file(dataset, split)) as temporary, open(temporary, "wb") as stream:
            np.save(stream, rows)

    def has_map(self, dataset: Dataset, split: str) -> bool:
        return self._map_file(dataset, split).is_file()

    def rows(self, dataset: Dataset, split: str) -> npt.NDArray[np.int64]:
        """Row of the store for every session of the split, in shard order.

        Raises:
            ProvenanceError: the dataset (as it is now) was not embedded into this store.
        """
        if not self.has_map(dataset, split):
            required = f"latent queries of {dataset.path} split {split!r} as it is now"
            received = "none (run `rgalign embed` on this dataset)"
            raise ProvenanceError(where=str(self.path), required=required, received=received)
        rows: npt.NDArray[np.int64] = np.load(self._map_file(dataset, split), allow_pickle=False)
        return rows

    def _map_file(self, dataset: Dataset, split: str) -> Path:
        key = sha256_json([dataset.fingerprint(split), dataset.schema.hash, dataset.catalog.hash])
        return self.path / "maps" / f"{key[:32]}.npy"

    def write_titles(self, catalog: IntentCatalog, rows: npt.NDArray[np.int64]) -> None:
        with atomic_path(self._titles_file(catalog)) as temporary, open(temporary, "wb") as stream:
            np.save(stream, rows)

    def has_titles(self, catalog: IntentCatalog) -> bool:
        return self._titles_file(catalog).is_file()

    def titles(self, catalog: IntentCatalog) -> npt.NDArray[np.int64]:
        """[N, T] rows of the store.

        Raises:
            ProvenanceError: the catalogue's words were not embedded into this store.
        """
        if not self.has_titles(catalog):
            required = "latent queries of the intents' titles (`rgalign embed --set titles=true`)"
            raise ProvenanceError(where=str(self.path), required=required, received="none of this catalogue")
        rows: npt.NDArray[np.int64] = np.load(self._titles_file(catalog), allow_pickle=False)
        return rows

    def _titles_file(self, catalog: IntentCatalog) -> Path:
        return self.path / "maps" / f"titles-{catalog.hash[:32]}.npy"

    def shard_rows(self, dataset: Dataset, split: str, shard_name: str) -> npt.NDArray[np.int64]:
        """The part of :meth:`rows` that belongs to one shard."""
        start = 0
        for shard in dataset.shards(split):
            count = pq.read_metadata(shard).num_rows
            if shard.name == shard_name:
                return self.rows(dataset, split)[start : start + count]
            start += count
        raise ProvenanceError(where=str(dataset.path), required=f"shard {shard_name!r} in {split}", received="none")

    def take(self, rows: npt.NDArray[np.int64]) -> Latents:
        """[n, D] float32."""
        out = np.empty((len(rows), self.dim), dtype=np.float32)
        chunk_of = np.searchsorted(self._starts, rows, side="right") - 1
        for chunk in np.unique(chunk_of):
            here = chunk_of == chunk
            out[here] = self._chunks[chunk][rows[here] - self._starts[chunk]]
        return out
