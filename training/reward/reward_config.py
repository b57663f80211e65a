"""Configuration of the reward: whose candidates, which ranker's configuration, how many folds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from rgalign.config import Config
from rgalign.training.reward.candidate_prompts import Placement
from rgalign.training.reward.folds import FoldBy


class RewardConfig(Config):
    """``rgalign train reward``.

    Args:
        candidates: finished run of ``rgalign train generate``.
        ranker: finished stage-1 run with a query tower. Its configuration is that of the folds' rankers, its dataset
            and latent queries are theirs.
        folds: rankers that are cross-fitted, each judging the users it was not trained on.
        k: cut-off of the NDCG.
        placement: where candidates stand; ``auto`` takes the first that passes the gate.
        gate_share: the gate's threshold; gate_sessions: validation sessions it asks about.
        max_batch_tokens: new tokens of one forward pass of the reasoner; default: as the latent queries were made.
    """

    candidates: Path
    ranker: Path
    folds: int = Field(default=5, ge=2)
    fold_by: FoldBy = "user"
    k: int = Field(default=5, ge=1)
    placement: Placement | Literal["auto"] = "auto"
    gate_share: float = Field(default=0.75, ge=0.5, le=1)
    gate_sessions: int = Field(default=400, ge=1)
    seed: int = Field(default=0, ge=0)
    max_batch_tokens: int | None = Field(default=None, ge=1)

    def identity(self) -> dict[str, Any]:
        """What a run must agree on, besides the content of its files, to be the same run."""
        return self.model_dump(mode="json", exclude={"candidates", "ranker", "max_batch_tokens"})
