"""Reward: every candidate query is judged by a ranker that has not seen its session's click.

    out/config.yaml  inputs.json
    out/folds/<hash>-<k>/      dataset without fold k, and the ranker trained on it
    out/latents/               latent queries of candidates and titles, content-addressed
    out/rewards.parquet        session_id, row, teacher, query, reward, margin, cosine, fold, latent
    out/metrics.json           gate, ties, winners, agreement, tokens
    out/done

Every part resumes: folds as stage-1 runs, latent queries chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rgalign.config import load_config
from rgalign.data.dataset import Dataset
from rgalign.errors import ConfigError, ProvenanceError, RewardError
from rgalign.files import read_json, sha256_file
from rgalign.room_on_disk import room_on_disk
from rgalign.training.embed import EMBED_CONFIG, EmbedConfig
from rgalign.training.experiment import run_config
from rgalign.training.ranker_files import LoadedRanker, load_ranker
from rgalign.training.reward.candidate_latents import CandidateEmbedder
from rgalign.training.reward.candidate_prompts import PLACEMENTS, CandidatePrompts, Placement
from rgalign.training.reward.folds import RewardFolds, fold_column
from rgalign.training.reward.gate import GateSessions, pass_gate
from rgalign.training.reward.reward_config import RewardConfig
from rgalign.training.reward.reward_model import RewardModel
from rgalign.training.reward.reward_statistics import (
    CandidateTable,
    agreement,
    mean_rewards,
    tie_statistics,
    winner_shares,
)
from rgalign.training.reward.rewards_file import FILE, LATENTS, write_rewards
from rgalign.training.run_directory import RunDirectory
from rgalign.training.semantic import require_untrained
from rgalign.training.stage1_config import Stage1Config
from rgalign.training.teachers.candidates_file import FILE as CANDIDATES
from rgalign.training.teachers.candidates_file import read_kept
from rgalign.training.teachers.step_run import open_step

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def reward(config: RewardConfig, out: Path, *, restart: bool = False, progress: bool = True) -> dict[str, Any]:
    """Judges all candidates, goes on with an interrupted run, or returns a finished one's metrics.

    Raises:
        RewardError: the gate, or rewards that are defined for no candidate.
        ProvenanceError: candidates of other sessions, another reasoner than the ranker's, text vectors of the intents
            that were trained on clicks, or a run of other inputs.
    """
    template = load_ranker(config.ranker)
    stage1 = _stage1(config, template)
    dataset = Dataset.open(stage1.dataset)
    template.require_dataset(dataset)
    candidates = read_kept(config.candidates)
    split = _require_same_sessions(config, dataset)
    run = RunDirectory(out)
    if not run.is_done:
        require_untrained(stage1.semantic)
    identity = {
        "format": 1,
        "config": config.identity(),
        "stage1": stage1.identity(),
        "candidates": sha256_file(config.candidates / CANDIDATES),
        "train": dataset.fingerprint("train"),
        "valid": dataset.fingerprint("valid"),
        "latents": template.latents,
        "semantic": template.provenance.get("semantic"),
    }
    if not open_step(run, identity, config, restart=restart):
        return run.metrics()
    with room_on_disk(out):
        run.finish(Reward(config, stage1, dataset, split, out, progress).run(candidates, template))
    return run.metrics()


class Reward:
    """One run, its inputs checked."""

    def __init__(
        self, config: RewardConfig, stage1: Stage1Config, dataset: Dataset, split: str, out: Path, progress: bool
    ) -> None:
        self.config, self.dataset, self.split, self.out, self.progress = config, dataset, split, out, progress
        self.stage1 = stage1
        self.folds = RewardFolds(stage1, out / "folds", folds=config.folds, by=config.fold_by, seed=config.seed)

    def run(self, candidates: pa.Table, template: LoadedRanker) -> dict[str, Any]:
        self.embedder = self._load_embedder(template)
        self.rankers = [self.folds.ranker(fold) for fold in range(self.config.folds)]
        placements = PLACEMENTS if self.config.placement == "auto" else (self.config.placement,)
        sessions = GateSessions.of(self.dataset, self.config.gate_sessions, self.config.seed)
        placement, gates = pass_gate(sessions, placements, self.config.gate_share, self._judge_validation)
        table, own = self._judge(candidates, placement)
        judged = CandidateTable(table, self._priority())
        return {
            "placement": placement,
            "gate": [result.to_json() for result in gates],
            "k": self.config.k,
            "split": self.split,
            "priority": self._priority(),
            "candidates": len(candidates),
            "judged": len(table),
            "sessions": len(judged.rewards),
            "folds": np.bincount(table.column("fold").to_numpy(), minlength=self.config.folds).tolist(),
            "ties": tie_statistics(judged),
            "winners": winner_shares(judged),
            "mean_reward": {**mean_rewards(judged), **own},
            "agreement": agreement(judged),
            "tokens": self.embedder.counts.to_json(),
            "rankers": [ranker.hash for ranker in self.rankers],
            "reasoner": self.embedder.store.hash,
        }

    def _load_embedder(self, template: LoadedRanker) -> CandidateEmbedder:
        assert self.stage1.latents is not None
        assert template.latents is not None
        embedding = load_config(EmbedConfig, self.stage1.latents / EMBED_CONFIG)
        if self.config.max_batch_tokens is not None:
            embedding = embedding.model_copy(update={"max_batch_tokens": self.config.max_batch_tokens})
        return CandidateEmbedder.load(
            embedding, self.dataset, self.stage1.latents, template.latents, self.out / LATENTS
        )

    def _priority(self) -> list[str]:
        names: list[str] = read_json(self.config.candidates / "metrics.json")["priority"]
        return names

    def _judge_validation(self, placement: Placement, rows: Ints, texts: Sequence[str]) -> Floats:
        """Rewards of texts as candidates of validation sessions."""
        latents = self._embedded("valid", rows, texts, placement, f"gate, {placement}")
        fold = fold_column(self.dataset, "valid", self.config.fold_by, self.config.folds, self.config.seed)[rows]
        return self._by_fold("valid", rows, fold, latents)[0]

    def _judge(self, candidates: pa.Table, placement: Placement) -> tuple[pa.Table, dict[str, float]]:
        """All candidates' rewards; and the mean reward without any candidate."""
        rows = candidates.column("row").to_numpy()
        texts: list[str] = candidates.column("query").to_pylist()
        session_ids = self._session_ids(rows, candidates)
        fold = fold_column(self.dataset, self.split, self.config.fold_by, self.config.folds, self.config.seed)[rows]
        latents = self._embedded(self.split, rows, texts, placement, "candidates")
        for each in range(self.config.folds):
            self.folds.require_unseen(each, [session_ids[place] for place in np.flatnonzero(fold == each)])
        rewards, margins = self._by_fold(self.split, rows, fold, latents)
        defined = ~np.isnan(rewards)
        if not defined.any():
            required = "sessions with a clicked intent to rank"
            raise RewardError(where="reward", required=required, received=f"none in {len(rows)} candidates")
        columns = {
            "session_id": candidates.column("session_id"),
            "row": rows,
            "teacher": candidates.column("teacher"),
            "query": candidates.column("query"),
            "reward": rewards,
            "margin": margins,
            "cosine": self._cosines(rows, latents, placement),
            "fold": fold,
            "latent": latents,
        }
        table = pa.table(
            {
                name: pa.array(values) if isinstance(values, np.ndarray) else values.combine_chunks()
                for name, values in columns.items()
            }
        ).filter(pa.array(defined))
        written = write_rewards(self.out / FILE, {name: table.column(name) for name in table.column_names})
        asked, first = np.unique(rows, return_index=True)
        return written, self._without_candidates(asked, fold[first])

    def _session_ids(self, rows: Ints, candidates: pa.Table) -> list[str]:
        """The candidates' session ids, checked against the dataset's at their rows."""
        own: list[str] = self.dataset.table(self.split, ["session_id"]).column(0).take(pa.array(rows)).to_pylist()
        claimed = candidates.column("session_id").to_pylist()
        if own != claimed:
            place = next(place for place, pair in enumerate(zip(own, claimed, strict=True)) if pair[0] != pair[1])
            where = f"{self.config.candidates}, candidate {place}"
            raise ProvenanceError(where=where, required=f"session {own[place]!r}", received=repr(claimed[place]))
        return own

    def _embedded(self, split: str, rows: Ints, texts: Sequence[str], placement: Placement, label: str) -> Ints:
        """Rows of the candidates' store."""
        prompts = CandidatePrompts(self.embedder.reasoner.tokenizer, self.embedder.encoder, placement)
        distinct, place = np.unique(rows, return_inverse=True)
        slots = prompts.slot_ids(self.dataset, split, distinct)
        built = prompts.build(texts, [slots[each] for each in place])
        return self.embedder.rows(built, label=label, progress=self.progress)

    def _by_fold(self, split: str, rows: Ints, fold: Ints, latents: Ints) -> tuple[Floats, Floats]:
        """Rewards and margins of (session, candidate) pairs, each by the ranker of its fold."""
        rewards, margins = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
        for each in np.unique(fold):
            here = np.flatnonzero(fold == each)
            sessions, place = np.unique(rows[here], return_inverse=True)
            distinct, chosen = np.unique(latents[here], return_inverse=True)
            model = RewardModel(self.rankers[each], self.dataset, split, sessions, self.config.k)
            # Equal texts of a session are judged once: equal to the bit wherever they stand in a product.
            pairs, pair = np.unique(place * len(distinct) + chosen, return_inverse=True)
            queries = model.queries(self.embedder.store.take(distinct))
            judged = model.rewards(pairs // len(distinct), queries, pairs % len(distinct))
            rewards[here], margins[here] = judged.reward[pair], judged.margin[pair]
        return rewards, margins

    def _without_candidates(self, rows: Ints, fold: Ints) -> dict[str, float]:
        """Mean reward of the sessions' own latent queries, and of none (ω = 1)."""
        own, none = np.empty(len(rows)), np.empty(len(rows))
        store = self.folds.store
        latents = store.rows(self.dataset, self.split)[rows]
        for each in np.unique(fold):
            here = np.flatnonzero(fold == each)
            model = RewardModel(self.rankers[each], self.dataset, self.split, rows[here], self.config.k)
            places = np.arange(len(here))
            own[here] = model.rewards(places, model.queries(store.take(latents[here]))).reward
            none[here] = model.rewards(places, None).reward
        return {"own latent query": float(np.nanmean(own)), "no query": float(np.nanmean(none))}

    def _cosines(self, rows: Ints, latents: Ints, placement: Placement) -> Floats:
        """[P] cosine of each candidate to the title of a clicked intent, the largest of several; NaN without one."""
        clicked = self.dataset.table(self.split, ["clicked"]).column(0).take(pa.array(rows)).to_pylist()
        names = self.dataset.catalog.names
        pairs = [(place, names[each]) for place, intents in enumerate(clicked) for each in intents if each in names]
        cosines = np.full(len(rows), -np.inf)
        if pairs:
            place = np.array([each for each, _ in pairs], np.int64)
            titles = self._embedded(self.split, rows[place], [title for _, title in pairs], placement, "titles")
            take = self.embedder.store.take
            for start in range(0, len(pairs), 65_536):
                here = slice(start, start + 65_536)
                left, right = _unit(take(latents[place[here]])), _unit(take(titles[here]))
                np.maximum.at(cosines, place[here], np.einsum("pd,pd->p", left, right))
        return np.where(np.isfinite(cosines), cosines, np.nan)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    unit: NDArray[np.float32] = (vectors / lengths).astype(np.float32)
    return unit


def _stage1(config: RewardConfig, template: LoadedRanker) -> Stage1Config:
    stage1 = run_config(config.ranker)
    if stage1.latents is None or template.latents is None:
        required = "a stage-1 run of a ranker with a query tower, trained on latent queries"
        raise ConfigError(where=str(config.ranker), required=required, received="one without latent queries")
    if stage1.warm_start is not None:
        required = "a ranker trained from scratch: weights that go on from others have seen every fold's clicks"
        raise ConfigError(where=str(config.ranker), required=required, received=f"warm_start {stage1.warm_start}")
    return stage1


def _require_same_sessions(config: RewardConfig, dataset: Dataset) -> str:
    """The candidates' split, after checking that it is this dataset's."""
    inputs = read_json(config.candidates / "inputs.json")
    split: str = inputs["config"]["split"]
    for what, ours, theirs in (
        ("schema", dataset.schema.hash, inputs["schema"]),
        ("catalogue", dataset.catalog.hash, inputs["catalogue"]),
        (split, dataset.fingerprint(split), inputs["split"]),
    ):
        if ours != theirs:
            required = f"candidates of the ranker's {what} ({ours[:12]})"
            raise ProvenanceError(where=str(config.candidates), required=required, received=theirs[:12])
    return split
