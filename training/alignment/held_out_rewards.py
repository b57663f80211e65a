"""The reward of held-out sessions' own latent queries while the reasoner is aligned.

    reward(h) = NDCG@K of the clicked intents when h, moved to where the chosen queries lie, takes the session's place

under the ranker of the session's fold (``rgalign.training.reward``), which has not seen its click: judge and cut-off
are those of the selection. Moved: standardised as the loss reads latent queries, then given the chosen queries' mean
and deviation, for RG-CL takes h to their direction and not to their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rgalign.config import load_config
from rgalign.data.dataset import Dataset
from rgalign.errors import ProvenanceError
from rgalign.training.alignment.contrast_targets import ContrastTargets
from rgalign.training.alignment.preferences import Preferences
from rgalign.training.experiment import run_config
from rgalign.training.reward.folds import RewardFolds
from rgalign.training.reward.reward_config import RewardConfig
from rgalign.training.reward.reward_model import RewardModel
from rgalign.training.reward.rewards_file import read_rewards


class HeldOutRewards:
    """Rewards of some sessions of a selection.

    Args:
        rewards: finished run of ``rgalign train reward``, the one the selection was made from.
        rows: of the selection, the held-out sessions.
        targets: whose spaces the latent queries are moved between.

    Raises:
        DataError: no finished run of rewards.
        ProvenanceError: rewards of another dataset.
    """

    def __init__(
        self, rewards: Path, dataset: Dataset, preferences: Preferences, rows: Sequence[int], targets: ContrastTargets
    ) -> None:
        judged = read_rewards(rewards)
        config = load_config(RewardConfig, rewards / "config.yaml")
        stage1 = run_config(config.ranker)
        folds = RewardFolds(stage1, rewards / "folds", folds=config.folds, by=config.fold_by, seed=config.seed)
        split = preferences.split
        if folds.dataset.fingerprint(split) != dataset.fingerprint(split):
            required = f"rewards of the sessions of {dataset.path}"
            raise ProvenanceError(where=str(rewards), required=required, received=f"those of {folds.dataset.path}")
        split_rows = np.array([preferences.items[row].split_row for row in rows], np.int64)
        fold_of = dict(zip(judged.column("row").to_pylist(), judged.column("fold").to_pylist(), strict=True))
        fold = np.array([fold_of[row] for row in split_rows.tolist()], np.int64)
        self._space, self._target_space = targets.space, targets.target_space
        self._models: list[RewardModel] = []
        self._place: dict[int, tuple[int, int]] = {}  # row of the selection -> its model and its place there
        for each in np.unique(fold).tolist():
            here = np.flatnonzero(fold == each)
            own = [rows[number] for number in here.tolist()]
            folds.require_unseen(each, [preferences.items[row].session_id for row in own])
            self._place |= {row: (len(self._models), place) for place, row in enumerate(own)}
            self._models.append(RewardModel(folds.trained(each), dataset, split, split_rows[here], config.k))

    def __call__(self, latents: Tensor, rows: Tensor) -> Tensor:
        """[B] float32 rewards of latent queries [B, D] of the selection's rows [B]; NaN without a click to rank."""
        moved = self._target_space.back(self._space(latents.detach().float().cpu())).numpy()
        found = []
        for vector, row in zip(moved, rows.tolist(), strict=True):
            model, place = self._place[row]
            judge = self._models[model]
            found.append(judge.rewards(np.array([place]), judge.queries(vector[None])).reward[0])
        return torch.tensor(found, dtype=torch.float32)
