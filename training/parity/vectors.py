"""Vectors of the same prompts by several reasoners, kept on disk as they are computed, and how close they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rgalign.data.dataset import Dataset
from rgalign.errors import DataError
from rgalign.prompt import PromptEncoder
from rgalign.reasoner.prefix_tree import TokenIds
from rgalign.reasoner.protocol import Reasoner
from rgalign.training.embed import embed_prompts, shard_prompts
from rgalign.training.latents import LatentStore, prompt_digest

Vectors = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Prompts:
    """Distinct prompts of some sessions.

    Args:
        ids: [n] what follows the constant prefix.
        of_session: [S] which of them is a session's.
        rows: [S] ascending rows of the split.
    """

    ids: list[TokenIds]
    prefix_ids: tuple[int, ...]
    of_session: Ints
    rows: Ints

    def whole(self, index: int) -> TokenIds:
        return np.concatenate([np.asarray(self.prefix_ids, np.int32), self.ids[index]])

    def spread(self, count: int) -> list[int]:
        """``count`` prompts, evenly spaced; fewer where there are fewer."""
        return [int(place) for place in np.unique(np.linspace(0, len(self.ids) - 1, count).astype(int))]


def prompts_of(dataset: Dataset, split: str, encoder: PromptEncoder, rows: Ints | None) -> Prompts:
    """Args: rows: ascending rows of the split; None: all.

    Raises:
        DataError: a split without sessions.
    """
    every = [ids for _, shard in shard_prompts(dataset, split, encoder) for ids in shard]
    if not every:
        raise DataError(where=f"{dataset.path} {split}", required="sessions to compare on", received="none")
    chosen = np.arange(len(every), dtype=np.int64) if rows is None else rows
    distinct: dict[bytes, int] = {}
    ids: list[TokenIds] = []
    of_session = np.empty(len(chosen), np.int64)
    for place, row in enumerate(chosen):
        digest = prompt_digest(every[row])
        if digest not in distinct:
            distinct[digest] = len(ids)
            ids.append(every[row])
        of_session[place] = distinct[digest]
    return Prompts(ids, encoder.prefix_ids, of_session, chosen)


def vectors_of(
    reasoner: Reasoner,
    prompts: Prompts,
    provenance: dict[str, Any],
    own: Path,
    *,
    reuse: Sequence[Path] = (),
    label: str = "",
    progress: bool = True,
) -> tuple[Vectors, int]:
    """[n, D] of the distinct prompts, and how many of them other stores had.

    What is computed is written to the store ``own`` chunk by chunk: an interrupted run goes on there.

    Args:
        provenance: of the reasoner's vectors; stores of ``reuse`` with another one are not looked at.

    Raises:
        ProvenanceError: ``own`` holds vectors of another reasoner or template.
        DataError: vectors that are not finite.
    """
    store = LatentStore.create(own, provenance)
    others = [other for other in map(LatentStore.open, reuse) if other.provenance == provenance]
    digests = [prompt_digest(prompts.whole(index)) for index in range(len(prompts.ids))]
    place = {index: other for other in others for index, digest in enumerate(digests) if digest in other.known}
    missing = [index for index in range(len(digests)) if index not in place]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, disable=not progress) as bar:
        task = bar.add_task(label, total=0, rate="")

        def advance(count: int) -> None:
            bar.advance(task, count)
            bar.update(task, rate=f"{bar.tasks[task].speed or 0.0:.1f} prompts/s")

        embed_prompts(
            store,
            [prompts.ids[index] for index in missing],
            prompts.prefix_ids,
            reasoner,
            "float32",
            begin=lambda total: bar.update(task, total=total),
            advance=advance,
        )
    vectors = np.empty((len(digests), store.dim), np.float32)
    for source in (store, *others):
        here = [index for index in range(len(digests)) if place.get(index, store) is source]
        vectors[here] = source.take(np.array([source.known[digests[index]] for index in here], np.int64))
    if not np.isfinite(vectors).all():
        bad = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise DataError(where=f"{label}, prompt {bad}", required="finite numbers", received="NaN or infinity")
    return vectors, len(place)


@dataclass(frozen=True)
class Closeness:
    """Over distinct prompts. ``centred``: after each side's mean vector is taken off, None for a single prompt.

    max_error: largest |difference| of a coordinate; relative_mean: mean of ||difference|| / ||definition||.
    """

    cosine_mean: float
    cosine_min: float
    centred_mean: float | None
    centred_min: float | None
    max_error: float
    relative_mean: float


def closeness(found: Vectors, exact: Vectors) -> Closeness:
    """Args: found, exact: [n, D].

    Raises:
        DataError: another shape, so another model.
    """
    if found.shape != exact.shape:
        raise DataError(where="vectors", required=f"shape {exact.shape}", received=f"{found.shape}")
    left, right = found.astype(np.float64), exact.astype(np.float64)
    cosines = _cosines(left, right)
    centred = _cosines(left - left.mean(axis=0), right - right.mean(axis=0)) if len(exact) > 1 else None
    relative = np.linalg.norm(left - right, axis=1) / np.linalg.norm(right, axis=1)
    return Closeness(
        cosine_mean=float(cosines.mean()),
        cosine_min=float(cosines.min()),
        centred_mean=None if centred is None else float(centred.mean()),
        centred_min=None if centred is None else float(centred.min()),
        max_error=float(np.abs(left - right).max()),
        relative_mean=float(relative.mean()),
    )


def _cosines(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosines: NDArray[np.float64] = (left * right).sum(axis=1) / np.maximum(norms, 1e-300)
    return cosines
