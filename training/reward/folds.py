"""Cross-fitting: K reward rankers, each trained without one fold of the users, which is the fold it judges.

    fold(session) = hash(seed, user) mod K

By user, since a session's click stands in the histories of the same user's later sessions. The folds' datasets are
directories like any other, and their latent queries are rows of the store that is there already.

    folds/<hash>-<fold>/data  run         dataset without the fold; the stage-1 run on it
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rgalign.data.dataset import Dataset, DatasetWriter
from rgalign.errors import DataError, ProvenanceError
from rgalign.files import sha256_json
from rgalign.training.latents import LatentStore
from rgalign.training.ranker_files import LoadedRanker
from rgalign.training.stage1 import load_ranker, train_stage1
from rgalign.training.stage1_config import Stage1Config

FoldBy = Literal["user", "session"]
_COLUMN = {"user": "user_id", "session": "session_id"}
Ints = NDArray[np.int64]


def fold_of(ids: Sequence[str | None], folds: int, seed: int = 0) -> Ints:
    """[n] fold of each user (or session) id; the same whatever else is in the log."""
    prefix = f"{seed}:".encode()
    digests = (blake2b(prefix + str(each).encode(), digest_size=8).digest() for each in ids)
    return np.array([int.from_bytes(digest) % folds for digest in digests], np.int64)


def fold_column(dataset: Dataset, split: str, by: FoldBy, folds: int, seed: int) -> Ints:
    """[S] fold of every session of a split. A session without a user is a user of its own."""
    table = dataset.table(split, ["session_id", "user_id"])
    session_ids = table.column("session_id").to_pylist()
    ids = table.column(_COLUMN[by]).to_pylist()
    named = [session if each is None else each for each, session in zip(ids, session_ids, strict=True)]
    return fold_of(named, folds, seed)


class RewardFolds:
    """The K rankers of one training split.

    Args:
        config: stage-1 configuration of all folds; its dataset and latents are the whole ones.
        path: directory of the folds.
    """

    def __init__(self, config: Stage1Config, path: Path, *, folds: int, by: FoldBy, seed: int) -> None:
        assert config.latents is not None
        self.config, self.folds = config, folds
        self.dataset = Dataset.open(config.dataset)
        self.store = LatentStore.open(config.latents)
        self.train = fold_column(self.dataset, "train", by, folds, seed)
        identity = [self.dataset.fingerprint("train"), self.dataset.fingerprint("valid"), folds, by, seed]
        self._path = path
        self._name = sha256_json([*identity, self.dataset.schema.hash, self.dataset.catalog.hash])[:12]

    def data(self, fold: int) -> Dataset:
        """The training sessions outside the fold, and all validation sessions; written once."""
        path = self._path / f"{self._name}-{fold}" / "data"
        kept = np.flatnonzero(self.train != fold)
        if not len(kept):
            received = f"all {len(self.train)} of them in fold {fold}"
            raise DataError(where="cross-fitting", required="training sessions in two folds or more", received=received)
        if not path.is_dir():
            with DatasetWriter(path, self.dataset.schema, self.dataset.catalog) as writer:
                writer.write("train", self.dataset.table("train").take(pa.array(kept)))
                writer.write("valid", self.dataset.table("valid"))
        data = Dataset.open(path)
        for split, rows in (("train", kept), ("valid", np.arange(self.dataset.num_rows("valid")))):
            if not self.store.has_map(data, split):
                self.store.write_map(data, split, self.store.rows(self.dataset, split)[rows])
        return data

    def ranker(self, fold: int) -> LoadedRanker:
        """The fold's ranker, trained if it is not there yet (an interrupted training goes on)."""
        config = self.config.model_copy(update={"dataset": self.data(fold).path})
        train_stage1(config, self._run(fold))
        return self.trained(fold)

    def trained(self, fold: int) -> LoadedRanker:
        """The fold's ranker, which is there. Trains nothing, so another trainer's process state stays as it is."""
        return load_ranker(self._run(fold))

    def _run(self, fold: int) -> Path:
        return self.data(fold).path.with_name("run")

    def require_unseen(self, fold: int, session_ids: Sequence[str]) -> None:
        """Refuses to let the fold's ranker judge a session that it was trained on.

        Raises:
            ProvenanceError: names one.
        """
        trained: list[Any] = self.data(fold).table("train", ["session_id"]).column("session_id").to_pylist()
        seen = set(trained).intersection(session_ids)
        if seen:
            required = "sessions whose clicks the ranker has not seen"
            received = f"{len(seen)} of its training sessions, such as {min(seen)!r}"
            raise ProvenanceError(where=f"reward ranker of fold {fold}", required=required, received=received)
