"""Small sessions of every feature kind, for the towers' tests."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from rgalign.data.encode import NumericStats, SessionBatch, SessionEncoder
from rgalign.intents import IntentCatalog
from rgalign.models import BaselineConfig, QERecConfig, Ranker, build_ranker
from rgalign.models.user_tower import UserTowerConfig
from rgalign.schema import (
    CategoricalFeature,
    CategoricalMember,
    FeatureSchema,
    GroupFeature,
    NumericalFeature,
    NumericalMember,
    SequenceFeature,
)

LATENT_DIM = 12
MAX_LENGTH = 5


class Sessions:
    """A schema, a catalogue of 7 intents, and encoded random sessions."""

    def __init__(self) -> None:
        vocabularies = {"region": {"sg": "Singapore", "my": "Malaysia"}, "status": {"open": "open", "done": "done"}}
        self.catalog = IntentCatalog(tuple("abcdefg"), tuple(f"title {c}" for c in "abcdefg"), ("",) * 7)
        self.schema = FeatureSchema(
            name="small",
            vocabularies=vocabularies,
            features=(
                CategoricalFeature(name="region", dimension="profile", vocabulary="region"),
                CategoricalFeature(name="order", dimension="context", vocabulary="status"),
                NumericalFeature(name="orders", dimension="profile", transform="log1p"),
                NumericalFeature(name="score", dimension="context"),
                SequenceFeature(name="viewed", dimension="behaviour", vocabulary="intents", max_length=MAX_LENGTH),
                GroupFeature(
                    name="past",
                    dimension="behaviour",
                    members=(
                        CategoricalMember(name="past_intents", vocabulary="intents"),
                        NumericalMember(name="past_hours"),
                        CategoricalMember(name="past_status", vocabulary="status"),
                        NumericalMember(name="past_price"),
                    ),
                    age="past_hours",
                    max_length=MAX_LENGTH,
                ),
            ),
        )
        self.encoder = SessionEncoder(self.schema, self.catalog, NumericStats.fit(self.table(64), self.schema))

    def table(self, count: int, seed: int = 0, lengths: list[int] | None = None, *, slates: bool = False) -> pa.Table:
        rng = np.random.default_rng(seed)
        ids = np.array(self.catalog.ids)
        steps = rng.integers(0, MAX_LENGTH + 1, count) if lengths is None else np.array(lengths)
        clicked = [list(rng.choice(ids, rng.integers(1, 3), replace=False)) for _ in range(count)]
        others = [[c for c in rng.permutation(ids) if c not in row][: rng.integers(1, 4)] for row in clicked]
        columns = {
            "region": rng.choice(["sg", "my", None, "xx"], count),
            "order": rng.choice(["open", "done"], count),
            "orders": rng.integers(0, 50, count).astype(float),
            "score": [None if rng.random() < 0.2 else float(rng.normal()) for _ in range(count)],
            "viewed": [list(rng.choice(ids, n)) for n in steps],
            "past_intents": [list(rng.choice(ids, n)) for n in steps],
            "past_hours": [sorted(rng.exponential(100, n)) for n in steps],
            "past_status": [list(rng.choice(["open", "done"], n)) for n in steps],
            "past_price": [list(rng.exponential(10, n)) for n in steps],
            "clicked": clicked,
            "candidates": [row + rest if slates else [] for row, rest in zip(clicked, others, strict=True)],
        }
        lists = {"viewed", "past_intents", "past_status", "clicked", "candidates"}
        kinds = {name: pa.list_(pa.string()) for name in lists}
        kinds |= {name: pa.list_(pa.float64()) for name in ("past_hours", "past_price")}
        return pa.table({name: pa.array(values, kinds.get(name)) for name, values in columns.items()})

    def batch(
        self, count: int = 16, seed: int = 0, lengths: list[int] | None = None, *, slates: bool = False
    ) -> SessionBatch:
        latents = np.random.default_rng(seed).normal(size=(count, LATENT_DIM)).astype(np.float32)
        return self.encoder.encode(self.table(count, seed, lengths, slates=slates), latents)

    def semantic(self) -> torch.Tensor:
        return torch.randn(len(self.catalog), 5, generator=torch.Generator().manual_seed(3))

    def ranker(self, config: QERecConfig | BaselineConfig, *, semantic: bool = True, seed: int = 0) -> Ranker:
        torch.manual_seed(seed)
        matrix = self.semantic() if semantic else None
        return build_ranker(config, self.schema, self.catalog, LATENT_DIM, matrix)


SMALL_USER = UserTowerConfig(embedding_dim=4, history_dim=8, attention_dim=8, hidden=(16,))
SMALL_CONFIGS: dict[str, QERecConfig | BaselineConfig] = {
    "qe_rec": QERecConfig(dim=8, user=SMALL_USER),
    "qe_rec tied": QERecConfig(
        dim=8, user=SMALL_USER.model_copy(update={"tie_intents": True, "history_dim": 32}), learnable_omega=True
    ),
    "baseline": BaselineConfig(dim=8, embedding_dim=4, head_dim=4, expert_hidden=(8,)),
    "baseline fuxictr": BaselineConfig(
        dim=8, embedding_dim=4, head_dim=4, expert_hidden=(8,), variant="fuxictr", gates="scenario", scenario="region"
    ),
}


@pytest.fixture(scope="session")
def sessions() -> Sessions:
    return Sessions()


@pytest.fixture(params=list(SMALL_CONFIGS))
def any_config(request: pytest.FixtureRequest) -> QERecConfig | BaselineConfig:
    return SMALL_CONFIGS[request.param]


@pytest.fixture
def any_ranker(any_config: QERecConfig | BaselineConfig, sessions: Sessions) -> Ranker:
    return sessions.ranker(any_config)


@pytest.fixture
def qe_rec(sessions: Sessions) -> Ranker:
    return sessions.ranker(SMALL_CONFIGS["qe_rec"]).eval()
