"""Steps between the rankers: embed, generate, reward, select, the two alignments, and embedding anew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rgalign.config import Config, load_config
from rgalign.data.dataset import SPLITS, Dataset
from rgalign.files import read_json, sha256_file
from rgalign.models.text_encoder import encoder_fingerprint
from rgalign.reasoner.pretrained import model_fingerprint
from rgalign.training.alignment.align import align
from rgalign.training.alignment.alignment_config import AlignmentConfig, Objective
from rgalign.training.alignment.policy import MODEL
from rgalign.training.alignment.reembed import reembed
from rgalign.training.embed import EMBED_CONFIG, EmbedConfig, EmbedReport, embed_dataset
from rgalign.training.latents import LatentStore
from rgalign.training.loop.loop_config import LoopConfig
from rgalign.training.loop.outside_files import dataset_hashes
from rgalign.training.loop.step import OnStep, Step
from rgalign.training.reward.reward import reward
from rgalign.training.reward.reward_config import RewardConfig
from rgalign.training.reward.rewards_file import FILE as REWARDS
from rgalign.training.run_directory import METRICS
from rgalign.training.selection.preferences import SUMMARY, select
from rgalign.training.selection.select_config import SelectConfig
from rgalign.training.semantic import require_untrained
from rgalign.training.teachers.candidates_file import FILE as CANDIDATES
from rgalign.training.teachers.generate import generate
from rgalign.training.teachers.generate_config import GenerateConfig
from rgalign.training.teachers.local_teacher import LocalConfig

NOT_EMBEDDED = {"model", "device", "max_batch_tokens"}  # the model counts by content


class ReembedConfig(Config):
    """What ``rgalign train reembed`` is given. Args: run: a finished alignment run."""

    run: Path
    dataset: Path


def embed_step(name: str, loop: LoopConfig, *, progress: bool) -> Step:
    config: EmbedConfig = loop.embed

    def run(out: Path, on_step: OnStep | None) -> Mapping[str, Any]:
        return _embedded(embed_dataset(Dataset.open(loop.dataset), out, config, progress=progress))

    return Step(
        name=name,
        config=config,
        settings=config.model_dump(mode="json", exclude=NOT_EMBEDDED),
        after=(),
        run=run,
        outcome=latents_outcome,
        files=lambda: {
            **dataset_hashes(loop.dataset, SPLITS),
            "model": model_fingerprint(config.model),
            **encoder_hash(config),
        },
    )


def reembed_step(name: str, loop: LoopConfig, aligned: str, run_dir: Path, *, progress: bool) -> Step:
    def run(out: Path, on_step: OnStep | None) -> Mapping[str, Any]:
        return _embedded(reembed(run_dir, out, progress=progress))

    return Step(
        name=name,
        config=ReembedConfig(run=run_dir, dataset=loop.dataset),
        settings=loop.embed.model_dump(mode="json", exclude=NOT_EMBEDDED),
        after=(aligned,),
        run=run,
        outcome=latents_outcome,
        files=lambda: dataset_hashes(loop.dataset, SPLITS),
    )


def _embedded(report: EmbedReport) -> dict[str, Any]:
    return {"sessions": report.sessions, "distinct_prompts_computed_last": report.distinct_prompts}


def latents_outcome(out: Path) -> dict[str, Any]:
    """The store's origin, and what of the prompts that leaves open."""
    config = load_config(EmbedConfig, out / EMBED_CONFIG)
    return {"store": LatentStore.open(out).hash, "max_tokens": config.max_tokens, "include_pii": config.include_pii}


def encoder_hash(config: EmbedConfig) -> dict[str, str]:
    """Of the sentence encoder that pooling ``external`` reads decoded questions with."""
    return {"encoder": encoder_fingerprint(config.sentence_encoder)} if config.pooling == "external" else {}


def generate_step(name: str, config: GenerateConfig, after: tuple[str, ...], *, progress: bool) -> Step:
    """Its parts, the teachers' answers, are kept: they are addressed by prompt, model and parameters."""
    return Step(
        name=name,
        config=config,
        settings=config.identity(),
        after=after,
        run=lambda out, on_step: generate(config, out, restart=True, progress=progress),
        outcome=lambda out: {
            "candidates": sha256_file(out / CANDIDATES),
            "priority": read_json(out / METRICS)["priority"],
        },
        files=lambda: {**dataset_hashes(config.dataset), **teacher_models(config)},
        ready=config.require_keys,
        parts_of=(),
    )


def teacher_models(config: GenerateConfig) -> dict[str, str]:
    local = [each for each in config.teachers if isinstance(each, LocalConfig)]
    return {f"model of {each.name}": model_fingerprint(each.model) for each in local}


def reward_step(name: str, loop: LoopConfig, config: RewardConfig, after: tuple[str, ...], *, progress: bool) -> Step:
    """Its parts, fold rankers and candidates' latent queries, outlive new candidates but no other ranker or reasoner.

    Args:
        after: the candidates' step first.
    """
    return Step(
        name=name,
        config=config,
        settings=config.identity(),
        after=after,
        run=lambda out, on_step: reward(config, out, restart=True, progress=progress),
        outcome=lambda out: {"rewards": sha256_file(out / REWARDS), **_named(out / METRICS, ("placement", "priority"))},
        files=lambda: dataset_hashes(loop.dataset),
        ready=lambda: require_untrained(loop.semantic),
        parts_of=after[1:],
    )


def _named(file: Path, names: tuple[str, ...]) -> dict[str, Any]:
    values = read_json(file)
    return {name: values[name] for name in names}


def select_step(name: str, config: SelectConfig, generated: GenerateConfig, after: tuple[str, ...]) -> Step:
    """Args: generated: whose candidates it chooses among."""
    return Step(
        name=name,
        config=config,
        settings=config.identity(),
        after=after,
        run=lambda out, on_step: select(config, out),
        outcome=lambda out: read_json(out / SUMMARY)["sha256"],
        ready=lambda: config.require_base([each.name for each in generated.teachers]),
    )


def align_step(name: str, objective: Objective, config: AlignmentConfig, after: tuple[str, ...]) -> Step:
    config = config.for_objective(objective)  # written out, its defaults would look like given values
    return Step(
        name=name,
        config=config,
        settings={"objective": objective, **config.identity()},
        after=after,
        run=lambda out, on_step: align(objective, config, out, on_step=on_step),
        outcome=lambda out: model_fingerprint(str(out / MODEL)),
        ready=config.require_deepspeed,
        files=lambda: dataset_hashes(config.dataset),
    )
