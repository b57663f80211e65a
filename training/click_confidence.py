"""The weights w_j that a trained ranker gives to the clicks it was trained on: low where a click looks like noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from rgalign.data.dataset import Dataset
from rgalign.files import atomic_path
from rgalign.models import Ranker
from rgalign.training.sessions import Order, Sessions

# Weights have mean 1 within a batch: large batches put those of all sessions on one scale.
BATCH_SIZE = 4096


@torch.no_grad()
def click_confidence(
    ranker: Ranker, sessions: Sessions, epoch: int, device: torch.device | str
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows within the split and their weights, without dropout.

    Args:
        epoch: as in :meth:`Ranker.loss`; during the warm-up epochs all weights are 1.
    """
    ranker.to(device).eval()
    rows: list[NDArray[np.int64]] = []
    weights: list[NDArray[np.float32]] = []
    # Shuffled, so that a batch is a sample of all weeks and its mean the same for all.
    for step in sessions.steps(Order(BATCH_SIZE, shuffle=True)):
        rows.append(step.rows)
        weights.append(ranker.loss(step.sessions.to(device), epoch=epoch).weights.float().cpu().numpy())
    order = np.argsort(np.concatenate(rows))
    return np.concatenate(rows)[order], np.concatenate(weights)[order]


def write_confidence(path: Path, dataset: Dataset, confidence: tuple[NDArray[np.int64], NDArray[np.float32]]) -> None:
    """Columns ``session_id, weight`` of the training sessions, in time order."""
    rows, weights = confidence
    ids = dataset.table("train", ["session_id"]).column("session_id").take(pa.array(rows))
    with atomic_path(path) as temporary:
        pq.write_table(pa.table({"session_id": ids, "weight": pa.array(weights)}), temporary)
