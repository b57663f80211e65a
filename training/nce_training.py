"""NCE pre-training of the item encoder on session × clicked-intent pairs of the training weeks.

sample sessions -> pick the intents that take part -> their keys and values, once -> steps -> states of all intents
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from rgalign.data.dataset import Dataset
from rgalign.data.encode import NumericStats, SessionEncoder
from rgalign.errors import DataError
from rgalign.models.hllm import HLLMItemEncoder
from rgalign.models.nce import ItemProjection
from rgalign.training.click_pairs import ClickPairs, most_clicked, sample_sessions
from rgalign.training.hllm_config import HLLMConfig
from rgalign.training.nce_model import IntentStates, NCEModel
from rgalign.training.nce_trainer import NCETrainer
from rgalign.training.trainer_state import Checkpoints

MAX_VALID_SESSIONS = 4000


@dataclass(frozen=True)
class Pretrained:
    """states: [N, D] of the whole catalogue, float32 on the CPU."""

    states: Tensor
    projection: ItemProjection
    history: list[dict[str, Any]]
    metrics: dict[str, Any]


def pretrain(
    dataset: Dataset,
    config: HLLMConfig,
    encoder: HLLMItemEncoder,
    texts: Sequence[str],
    checkpoint: Path,
    bar: Progress,
) -> Pretrained:
    """Trains ``encoder`` in place on the ``train`` split; ``valid`` is only measured.

    Raises:
        DataError: fewer than two intents were clicked in training.
    """
    began = time.perf_counter()
    table = sample_sessions(dataset, "train", config.max_sessions, config.seed)
    rows = most_clicked(table, dataset.catalog, config.max_train_intents)
    if len(rows) < 2:
        raise DataError(where=str(dataset.path / "train"), required="clicks on two intents", received=str(len(rows)))
    columns = torch.full((len(dataset.catalog),), -1)
    columns[rows] = torch.arange(len(rows))
    sessions = SessionEncoder(dataset.schema, dataset.catalog, NumericStats.fit(table, dataset.schema))
    pairs = ClickPairs.encode(table, sessions, columns)
    valid = None
    if dataset.shards("valid") and dataset.num_rows("valid"):
        valid_table = sample_sessions(dataset, "valid", MAX_VALID_SESSIONS, config.seed)
        valid = ClickPairs.encode(valid_table, sessions, columns)

    token_ids = encoder.tokenize(texts)
    intents = _intent_states(encoder, [token_ids[row] for row in rows], config, bar)
    text_seconds = time.perf_counter() - began
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        bank = intents.constant(range(len(rows)))
        model = NCEModel(config, encoder, bank, dataset.schema, columns).to(encoder.device)
        state = NCETrainer(config, model, intents, pairs, valid, Checkpoints(checkpoint)).run(bar)

    states = torch.empty(len(texts), encoder.dim)
    states[rows] = intents.constant(range(len(rows))).cpu()
    rest = [row for row in range(len(texts)) if columns[row] < 0]
    if rest:
        task = bar.add_task("other intents", total=len(rest))
        states[rest] = encoder.encode([texts[row] for row in rest], on_texts=lambda count: bar.advance(task, count))
    metrics = {
        "steps": state.step,
        "train_sessions": len(pairs),
        "trained_intents": len(rows),
        "text_tokens": sum(map(len, token_ids)),
        "text_seconds": text_seconds,
        "train_seconds": state.total_seconds,
        "total_seconds": time.perf_counter() - began,
        "valid_nce_first": state.history[0].get("valid_nce"),
        "valid_nce_last": state.history[-1].get("valid_nce"),
    }
    return Pretrained(states, model.projection, state.history, metrics)


def _intent_states(
    encoder: HLLMItemEncoder, token_ids: list[list[int]], config: HLLMConfig, bar: Progress
) -> IntentStates:
    if config.tune == "all" or not encoder.stores_keys:
        return IntentStates(encoder, token_ids, None)
    task = bar.add_task("intent texts", total=len(token_ids))
    texts = encoder.text_states(token_ids, on_texts=lambda count: bar.advance(task, count))
    return IntentStates(encoder, token_ids, texts)
