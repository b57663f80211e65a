"""One session, answered as a service would: its prompt's slots, its latent query, the intents and why each is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from rgalign.config import load_config
from rgalign.data.dataset import SPLITS, Dataset
from rgalign.errors import DataError
from rgalign.schema import Slot
from rgalign.training.embed import (
    EMBED_CONFIG,
    EmbedConfig,
    Reasoner,
    load_reasoner,
    prompt_encoder,
    store_provenance,
)
from rgalign.training.experiment import run_config
from rgalign.training.fused_scores import fused_scores, rank_sessions
from rgalign.training.index_build import index_of
from rgalign.training.latents import LatentStore
from rgalign.training.ranker_files import load_ranker


@dataclass(frozen=True)
class RecommendedIntent:
    """``score = user_part + query_part`` (paper, eq. 4); ``probability`` is the softmax over the catalogue."""

    id: str
    title: str
    score: float
    user_part: float
    query_part: float
    probability: float


@dataclass(frozen=True)
class Recommendation:
    """Answer for one session; ``slots`` are what the reasoner read, none for a ranker without a query tower."""

    session_id: str
    slots: list[Slot]
    intents: list[RecommendedIntent]
    clicked: list[str]


def find_session(dataset: Dataset, session_id: str) -> pa.Table:
    """The one row with this id, in whichever split it stands.

    Raises:
        DataError: there is none.
    """
    for split in SPLITS:
        if dataset.shards(split):
            table = dataset.table(split)
            found = table.filter(pc.equal(table.column("session_id"), session_id))
            if len(found):
                return found.slice(0, 1)
    raise DataError(where=str(dataset.path), required="a session of the dataset", received=repr(session_id))


class SessionRecommender:
    """Reasoner and ranker of a finished training run, loaded once.

    Args:
        run_dir: the run. Its latent store says which reasoner and template made its queries; another is refused.
    """

    def __init__(self, run_dir: Path) -> None:
        config = run_config(run_dir)
        self.loaded = load_ranker(run_dir)
        self.index = index_of(self.loaded)
        self.reasoner: Reasoner | None = None
        if config.latents is not None:
            embedding = load_config(EmbedConfig, config.latents / EMBED_CONFIG)
            self.reasoner = load_reasoner(embedding, config.latents)
            dataset = Dataset(config.dataset, self.loaded.schema, self.loaded.catalog)
            self.prompts = prompt_encoder(embedding, self.reasoner.tokenizer, dataset)
            LatentStore.open(config.latents).require(store_provenance(self.reasoner, self.prompts, embedding))

    @torch.inference_mode()
    def recommend(self, session: pa.Table, k: int = 5) -> Recommendation:
        """Args: session: one row with the columns of the run's dataset."""
        row = session.to_pylist()[0]
        slots: list[Slot] = []
        latents = None
        if self.reasoner is not None:
            encoded = self.prompts.encode(row)
            slots = encoded.slots
            ids = np.append(encoded.slot_ids, np.asarray(self.prompts.suffix_ids, np.int32))
            latents = self.reasoner.embed([ids], prefix_ids=self.prompts.prefix_ids).numpy()
        ranker, catalog = self.loaded.ranker, self.loaded.catalog
        batch = self.loaded.encoder.encode(session, latents)
        total = fused_scores(ranker, batch, self.index.decoded).total[0]
        probabilities = (ranker.lists.scale() * total).softmax(dim=0)
        ranked = rank_sessions(ranker, self.index, batch, k)
        intents = [
            RecommendedIntent(
                id=catalog.ids[index],
                title=catalog.titles[index],
                score=float(ranked.scores[0, place]),
                user_part=float(ranked.user_part[0, place]),
                query_part=float(ranked.query_part[0, place]),
                probability=float(probabilities[index]),
            )
            for place, index in enumerate(ranked.rows[0].tolist())
        ]
        clicked = [catalog.names.get(str(intent), str(intent)) for intent in row["clicked"]]
        return Recommendation(str(row["session_id"]), slots, intents, clicked)


def describe(recommendation: Recommendation) -> Any:
    """A rich renderable: the slots, then the ranked intents."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"session {recommendation.session_id}", title_justify="left")
    for name in ("", "intent", "score", "= user part", "+ query part", "probability"):
        table.add_column(name, justify="left" if name in ("", "intent") else "right")
    for rank, intent in enumerate(recommendation.intents, start=1):
        hit = "✔ " if intent.title in recommendation.clicked else ""
        numbers = (f"{value:.3f}" for value in (intent.score, intent.user_part, intent.query_part, intent.probability))
        table.add_row(f"{hit}{rank}", intent.title, *numbers)
    lines = [Text(f"  {slot.text}", style="dim") for slot in recommendation.slots]
    chosen = Text("the user chose: " + ", ".join(recommendation.clicked)) if recommendation.clicked else Text("")
    return Group(*lines, table, chosen)
