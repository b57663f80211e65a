"""Selection: of each session's judged candidates the chosen query and the rejected ones, for the alignment of stage 2.

    out/preferences.parquet    session_id, chosen, chosen_reward, chosen_teacher, rejected, rejected_reward,
                               rejected_teacher; one row a chosen query (with v4_keep both, up to two a session)
    out/chosen_latents.npy     [rows, D] float32: the frozen reasoner's latent query of each chosen query (e+ of eq. 11)
    out/selection.json         strategy, counts, retention, ties, winners, agreement, hashes of what it is made from
    out/examples.md            some sessions to read

Whole or absent: a selection is written beside its place and renamed.
"""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rgalign.config import load_config
from rgalign.data.dataset import Dataset
from rgalign.data.sample import spaced_rows
from rgalign.errors import ConfigError, RewardError
from rgalign.files import discard, read_json, sha256_file, sync_directory, write_atomic, write_json
from rgalign.room_on_disk import room_on_disk
from rgalign.training.experiment import run_config
from rgalign.training.latents import LatentStore
from rgalign.training.reward.reward_config import RewardConfig
from rgalign.training.reward.reward_statistics import (
    CandidateTable,
    agreement,
    mean_rewards,
    tie_statistics,
    winner_shares,
)
from rgalign.training.reward.rewards_file import FILE as REWARDS
from rgalign.training.reward.rewards_file import LATENTS, read_rewards
from rgalign.training.selection.examples_page import Example, examples_page
from rgalign.training.selection.select_config import SelectConfig
from rgalign.training.selection.strategies import KEPT, Choice, Scored, choose
from rgalign.training.teachers.teacher import session_contexts

FORMAT = 1
PREFERENCES, CHOSEN_LATENTS, SUMMARY, EXAMPLES = (
    "preferences.parquet",
    "chosen_latents.npy",
    "selection.json",
    "examples.md",
)
SCHEMA = pa.schema(
    [
        ("session_id", pa.string()),
        ("chosen", pa.string()),
        ("chosen_reward", pa.float64()),
        ("chosen_teacher", pa.string()),
        ("rejected", pa.list_(pa.string())),
        ("rejected_reward", pa.list_(pa.float64())),
        ("rejected_teacher", pa.list_(pa.string())),
    ]
)


def select(config: SelectConfig, out: Path) -> dict[str, Any]:
    """Writes the selection at ``out``, replacing a former one; the contents of selection.json.

    Raises:
        RewardError: rewards that tell no candidates apart, or a strategy that keeps no session. Nothing is written.
        ConfigError: teachers that the rewards do not have, or ``out`` is another thing than a selection.
    """
    table = read_rewards(config.rewards)
    metrics = read_json(config.rewards / "metrics.json")
    priority = _priority(config, metrics["priority"])
    _check_place(out)
    matrix = CandidateTable(table, priority)
    ties = tie_statistics(matrix)
    if ties["all_tied"] == 1 and config.tie_break == "priority":
        required = "candidates of different reward in some session (or tie_break: margin, or better teachers)"
        received = f"all candidates tied in each of {ties['sessions']} sessions"
        raise RewardError(where=str(config.rewards), required=required, received=received)
    sessions = _sessions(table)
    choices = {name: _chosen(candidates, config, priority) for name, candidates in sessions.items()}
    reasons = Counter(each[0].why for each in choices.values())
    if not reasons[KEPT]:
        required = f"strategy {config.strategy} to keep a session"
        received = "; ".join(f"{count} x {why}" for why, count in reasons.most_common())
        raise RewardError(where="selection", required=required, received=received)
    kept = {name: each for name, each in choices.items() if each[0].chosen is not None}
    winners = [_winner(choice) for each in kept.values() for choice in each]
    summary = {
        "format": FORMAT,
        "config": config.identity(),
        "strategy": config.strategy,
        "tie_break": config.tie_break,
        "priority": list(priority),
        "base": config.base,
        "split": metrics["split"],
        "sessions": len(choices),
        "kept": len(kept),
        "retention": len(kept) / len(choices),
        "dropped": {why: count for why, count in reasons.most_common() if why != KEPT},
        "chosen": len(winners),
        "pairs": sum(len(choice.rejected) for each in kept.values() for choice in each),
        "sessions_with_rejected": sum(any(choice.rejected for choice in each) for each in kept.values()),
        "chosen_by_teacher": dict(Counter(winner.teacher for winner in winners)),
        "distinct_chosen": len({winner.query for winner in winners}),
        "mean_chosen_reward": float(np.mean([winner.reward for winner in winners])),
        "ties": ties,
        "winners": winner_shares(matrix),
        "mean_reward": mean_rewards(matrix),
        "agreement": agreement(matrix),
        "provenance": _provenance(config, metrics),
    }
    with room_on_disk(out):
        _write(out, kept, summary, config, table)
    return summary


def _priority(config: SelectConfig, teachers: list[str]) -> tuple[str, ...]:
    """All teachers in order; configured ones first check that they are the teachers there are."""
    config.require_base(teachers)
    if config.priority is None:
        return tuple(teachers)
    if sorted(config.priority) != sorted(teachers):
        received = ", ".join(config.priority)
        raise ConfigError(where="priority", required=f"each of {', '.join(teachers)} once", received=received)
    return config.priority


def _check_place(out: Path) -> None:
    if out.exists() and any(out.iterdir()) and not (out / SUMMARY).is_file():
        required = "an empty place, or a former selection to replace"
        raise ConfigError(where=str(out), required=required, received=f"a directory without {SUMMARY}")


def _sessions(table: pa.Table) -> dict[str, list[Scored]]:
    """The candidates of each session, in the order of the file."""
    sessions: dict[str, list[Scored]] = {}
    for row in table.to_pylist():
        fields = {name: row[name] for name in ("teacher", "query", "reward", "margin", "latent")}
        cosine = math.nan if row["cosine"] is None else row["cosine"]
        sessions.setdefault(row["session_id"], []).append(Scored(cosine=cosine, **fields))
    return sessions


def _chosen(candidates: list[Scored], config: SelectConfig, priority: tuple[str, ...]) -> list[Choice]:
    choices = choose(
        candidates,
        config.strategy,
        priority=priority,
        base=config.base,
        tie_break=config.tie_break,
        v4_keep=config.v4_keep,
        min_reward=config.min_reward,
    )
    return [Choice(choice.why, choice.chosen, choice.rejected[: config.max_rejected]) for choice in choices]


def _winner(choice: Choice) -> Scored:
    assert choice.chosen is not None
    return choice.chosen


def _provenance(config: SelectConfig, metrics: dict[str, Any]) -> dict[str, Any]:
    inputs = read_json(config.rewards / "inputs.json")
    return {
        "rewards": sha256_file(config.rewards / REWARDS),
        "candidates": inputs["candidates"],
        "dataset": {split: inputs[split] for split in ("train", "valid")},
        "rankers": metrics["rankers"],
        "reasoner": metrics["reasoner"],
        "latents": inputs["latents"],
        "placement": metrics["placement"],
        "gate": metrics["gate"],
        "k": metrics["k"],
    }


def _write(
    out: Path, kept: dict[str, list[Choice]], summary: dict[str, Any], config: SelectConfig, rewards: pa.Table
) -> None:
    building = out.with_name(f".{out.name}.{uuid4().hex[:8]}.tmp")
    try:
        building.mkdir(parents=True)
        preferences = [(name, choice) for name, each in kept.items() for choice in each]
        rows = [_preference(name, choice) for name, choice in preferences]
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), building / PREFERENCES, compression="zstd")
        store = LatentStore.open(config.rewards / LATENTS)
        latents = store.take(np.array([_winner(choice).latent for _, choice in preferences], np.int64))
        np.save(building / CHOSEN_LATENTS, latents, allow_pickle=False)
        write_atomic(building / EXAMPLES, _examples(kept, summary, config, rewards).encode())
        files = {name: sha256_file(building / name) for name in (PREFERENCES, CHOSEN_LATENTS)}
        write_json(building / SUMMARY, {**summary, "sha256": files})
        for file in building.iterdir():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
        sync_directory(building)
        discard(out)
        os.replace(building, out)
        sync_directory(out.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _preference(session_id: str, choice: Choice) -> dict[str, Any]:
    chosen = _winner(choice)
    return {
        "session_id": session_id,
        "chosen": chosen.query,
        "chosen_reward": chosen.reward,
        "chosen_teacher": chosen.teacher,
        "rejected": [each.query for each in choice.rejected],
        "rejected_reward": [each.reward for each in choice.rejected],
        "rejected_teacher": [each.teacher for each in choice.rejected],
    }


def _examples(kept: dict[str, list[Choice]], summary: dict[str, Any], config: SelectConfig, rewards: pa.Table) -> str:
    """Evenly spaced over the kept sessions; the dataset is that of the rewards."""
    reward_config = load_config(RewardConfig, config.rewards / "config.yaml")
    dataset = Dataset.open(run_config(reward_config.ranker).dataset)
    names = list(kept)
    count = min(config.examples, len(names))
    picked = [names[place] for place in spaced_rows(len(names), count)] if count else []
    row_of = dict(zip(rewards.column("session_id").to_pylist(), rewards.column("row").to_pylist(), strict=True))
    rows = np.array([row_of[name] for name in picked], np.int64)
    contexts = session_contexts(dataset, summary["split"], rows)
    clicked = dataset.table(summary["split"], ["clicked"]).column("clicked").take(pa.array(rows)).to_pylist()
    titles = dataset.catalog.names
    examples = [
        Example(
            name,
            [slot.text for slot in dataset.schema.slots(context.session)],
            [titles[each] for each in intents if each in titles],
            kept[name],
        )
        for name, context, intents in zip(picked, contexts, clicked, strict=True)
    ]
    return examples_page(f"Selection {config.strategy}, {len(kept)} sessions", examples)
