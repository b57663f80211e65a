"""The weights w_j that a trained ranker gives to the clicks it was trained on: low where a click looks like noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from rgalign.data.dataset import Dataset
from rgalign.data.simulator.truth import read_truth
from rgalign.files import atomic_path
from rgalign.models import Ranker
from rgalign.training.run_directory import CONFIDENCE
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


def noise_auc(run_dir: Path, dataset: Dataset) -> float | None:
    """AUC of a low weight against the simulator's hidden noise flag, over the run's training sessions.

    Returns:
        0.5 for weights that know nothing of the noise, 1.0 for weights that are lower wherever a click was noise; None
        for a run without confidence weights.

    Raises:
        DataError: the dataset was not simulated, or is not the one that the run was trained on.
    """
    from sklearn.metrics import roc_auc_score

    if not (run_dir / CONFIDENCE).is_file():
        return None
    table = pq.ParquetFile(run_dir / CONFIDENCE).read()
    truth = read_truth(dataset.path, "train", dataset.catalog).aligned(np.asarray(table["session_id"].to_pylist()))
    return float(roc_auc_score(truth.noise, -table["weight"].to_numpy()))
