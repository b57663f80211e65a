"""Latent queries of millions of sessions: Ray Data actors, each with a reasoner of its own.

Prompts travel in the very chunks that a single process computes, and come back in their order, so the store is the
same to the bit (with as many threads to an actor as that process has). The driver reads sessions, tokenises and writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rgalign.errors import ConfigError, ProvenanceError
from rgalign.files import sha256_json
from rgalign.reasoner.prefix_tree import TokenIds


@dataclass(frozen=True)
class RayActors:
    """How many actors, and what each is given. ``RAY_ADDRESS`` names a cluster; without it Ray runs here.

    Args:
        gpus: of each actor; with any, actors compute on ``cuda``.
        cpus: of each actor, and its threads; None shares this machine's cores out evenly.
    """

    actors: int
    gpus: float = 0.0
    cpus: int | None = None

    def __post_init__(self) -> None:
        if self.actors < 1:
            raise ConfigError(where="--ray", required="at least one actor", received=str(self.actors))


class ReasonerActor:
    """Args:
    config: of the embedding, as plain values.
    store: of the latent queries, where an engine is.
    reasoner: hash of the driver's.
    prefix_ids: what stands before every prompt.

    Raises:
        ProvenanceError: this machine's reasoner is another one.
    """

    def __init__(
        self, config: dict[str, Any], store: str, reasoner: str, prefix_ids: Sequence[int], threads: int
    ) -> None:
        from rgalign.training.embed import EmbedConfig, load_reasoner

        torch.set_num_threads(threads)
        self._reasoner = load_reasoner(EmbedConfig.model_validate(config), Path(store))
        found = sha256_json(self._reasoner.provenance)
        if found != reasoner:
            required = f"the driver's reasoner {reasoner[:12]} (an engine's store on a file system that all share)"
            raise ProvenanceError(where="Ray actor", required=required, received=found[:12])
        self._prefix_ids = tuple(prefix_ids)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """One chunk: ``ids`` and ``lengths`` of its prompts -> ``latents``, float32 [n, D]."""
        vectors = []
        for ids, lengths in zip(batch["ids"], batch["lengths"], strict=True):
            starts = np.cumsum(np.frombuffer(lengths, np.int32))[:-1]
            prompts = np.split(np.frombuffer(ids, np.int32), starts)
            found = self._reasoner.embed(prompts, prefix_ids=self._prefix_ids, on_prompts=lambda count: None)
            vectors.append(found.numpy().tobytes())
        return {"number": list(batch["number"]), "latents": vectors}


class RayEmbedder:
    """What ``embed_prompts`` takes for a reasoner.

    Args:
        config: plain values of the EmbedConfig, ``device`` included.
        store: directory of the latent queries.
        reasoner: hash of the driver's, which the actors' must have.
        dim: D.
    """

    def __init__(self, config: dict[str, Any], store: Path, reasoner: str, dim: int, actors: RayActors) -> None:
        self._config, self._store, self._reasoner, self._dim, self._actors = config, store, reasoner, dim, actors

    def embed_chunks(
        self, chunks: Sequence[Sequence[TokenIds]], *, prefix_ids: Sequence[int], on_prompts: Callable[[int], None]
    ) -> Iterator[torch.Tensor]:
        """[n, D] of each chunk, in order."""
        if not chunks:
            return
        import ray
        import ray.data

        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False)
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        rows = [
            {
                "number": number,
                "ids": np.concatenate(chunk).astype(np.int32).tobytes(),
                "lengths": np.array([len(ids) for ids in chunk], np.int32).tobytes(),
            }
            for number, chunk in enumerate(chunks)
        ]
        cores = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
        threads = self._actors.cpus or max(1, cores // self._actors.actors)
        found = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            ReasonerActor,
            fn_constructor_args=(self._config, str(self._store.resolve()), self._reasoner, tuple(prefix_ids), threads),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=self._actors.actors),
            num_cpus=threads,
            num_gpus=self._actors.gpus or None,
        )
        for number, row in enumerate(found.iter_rows()):
            assert row["number"] == number, "Ray gave chunks out of order"
            latents = np.frombuffer(row["latents"], np.float32).reshape(-1, self._dim)
            on_prompts(len(latents))
            yield torch.from_numpy(latents.copy())
