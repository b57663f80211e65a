"""QE-Rec: the three-tower ranker of the paper's 3.3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor

from rgalign.config import Config
from rgalign.intents import IntentCatalog
from rgalign.models.confidence import ConfidenceConfig, ConfidenceWeights
from rgalign.models.intent_tower import IntentTower, IntentTowerConfig
from rgalign.models.loss import LossConfig
from rgalign.models.query_tower import InputNorm, QueryTower
from rgalign.models.ranker import Ranker
from rgalign.models.user_tower import UserTower, UserTowerConfig
from rgalign.schema import CategoricalFeature, FeatureSchema

# The published form, where it differs from the default: eq. 6 over the batch index with softmax(y) targets and plain
# cosines, and σ read as the sigmoid, as in eq. 10.
PAPER_LITERAL: dict[str, dict[str, object]] = {
    "loss": {
        "list_axis": "batch",
        "target": "exp",
        "logit_scale": "fixed",
        "logit_scale_init": 1.0,
        "logq_correction": False,
    },
    "user": {"out_activation": "sigmoid"},
}


class QERecConfig(Config):
    """QE-Rec. With ``preset: paper_literal`` keys that are not given take the published form.

    Args:
        dim: d, the width of û, î and q̂.
        omega: ω, weight of the user part; ``learnable_omega`` starts there.
        query_dropout: on the latent queries, beside ``dropout`` in the towers.
        query_absence: in training, the share of sessions whose latent query is taken for missing.
        confidence: the weights w_j; None trains with w = 1.
    """

    model: Literal["qe_rec"] = "qe_rec"
    preset: Literal["default", "paper_literal"] = "default"
    dim: int = Field(default=128, gt=0)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    omega: float = Field(default=0.7, gt=0, lt=1)
    learnable_omega: bool = False
    input_norm: InputNorm = "standardize"
    query_dropout: float = Field(default=0.2, ge=0, lt=1)
    query_absence: float = Field(default=0.0, ge=0, lt=1)
    user: UserTowerConfig = UserTowerConfig()
    intent: IntentTowerConfig = IntentTowerConfig()
    loss: LossConfig = LossConfig()
    confidence: ConfidenceConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("preset") != "paper_literal":
            return values
        filled = dict(values)
        for section, literal in PAPER_LITERAL.items():
            given = filled.get(section, {})
            given = given.model_dump(exclude_unset=True) if isinstance(given, Config) else dict(given)
            filled[section] = {**literal, **given}
        return filled

    @model_validator(mode="after")
    def _check(self) -> QERecConfig:
        if self.user.tie_intents and self.user.history_dim != self.intent.id_dim:
            raise ValueError("user.tie_intents needs user.history_dim == intent.id_dim")
        return self


def confidence_weights(config: ConfidenceConfig | None, schema: FeatureSchema, dim: int) -> ConfidenceWeights | None:
    if config is None:
        return None
    categorical = [f for f in schema.features if isinstance(f, CategoricalFeature)]
    return ConfidenceWeights(config, dim, [schema.vocabulary(f.vocabulary).size for f in categorical])


def build_qe_rec(
    config: QERecConfig, schema: FeatureSchema, catalog: IntentCatalog, latent_dim: int | None, semantic: Tensor | None
) -> Ranker:
    """``schema`` is bound to ``catalog``; without ``latent_dim`` there is no query tower and ω is 1."""
    query = None
    if latent_dim is not None:
        dropout, absence = config.query_dropout, config.query_absence
        query = QueryTower(latent_dim, config.dim, config.input_norm, dropout, absence)
    return Ranker(
        UserTower(config.user, schema, config.dim, config.dropout),
        IntentTower(config.intent, len(catalog), semantic, config.dim, config.dropout),
        query,
        config.loss,
        len(catalog),
        omega=config.omega,
        learnable_omega=config.learnable_omega,
        confidence=confidence_weights(config.confidence, schema, config.dim),
    )
