"""Warm start: the weights that stage 3 goes on from, and the refusal of weights that would not mean the same here.

The reasoner may be another one: that is what stage 3 is for. Everything else that gives the weights their meaning must
be as it was: the ranker's shape, the codes of schema and catalogue, the intents' text vectors. The training sessions
too: a ranker cross-fitted from weights that saw the held-out fold's clicks would judge what it knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rgalign.errors import ProvenanceError
from rgalign.training.latents import LatentStore
from rgalign.training.ranker_files import LoadedRanker, load_ranker
from rgalign.training.stage1_config import Stage1Config

SAME = ("schema", "catalogue", "train", "semantic")


def load_warm_start(
    run_dir: Path, config: Stage1Config, store: LatentStore | None, identity: Mapping[str, Any]
) -> LoadedRanker:
    """The ranker that training begins with.

    Args:
        identity: of the run that begins, as ``Stage1Inputs`` makes it.

    Raises:
        ProvenanceError: no finished run, another ranker, other training sessions or text vectors, or latent queries of
            another width.
    """
    loaded = load_ranker(run_dir)
    trained = {
        "config.model": loaded.config.model_dump(mode="json"),
        "config.max_train": loaded.provenance["config"]["max_train"],
        "width of the latent queries": None if loaded.latents is None else loaded.latents["dim"],
        **{name: loaded.provenance[name] for name in SAME},
    }
    wanted = {
        "config.model": config.model.model_dump(mode="json"),
        "config.max_train": config.max_train,
        "width of the latent queries": None if store is None else store.dim,
        **{name: identity[name] for name in SAME},
    }
    for name, value in wanted.items():
        if trained[name] != value:
            where = f"warm start from {run_dir}"
            raise ProvenanceError(where=where, required=f"{name} {value!r}", received=repr(trained[name]))
    return loaded
