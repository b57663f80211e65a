"""Steps that several tables read, under the same names, so that a directory has each once.

    embed  baseline  stage1  generate  reward
    V2/select  V2/control (or control)
    V2/seed0/  sft  cl  cl_latents  cl_stage3   dpo  dpo_latents  dpo_stage3   sft_...

A generator yields a step when its turn has come; whoever drives it completes the step before it asks for the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rgalign.errors import RewardError
from rgalign.files import read_json, write_json
from rgalign.training.alignment.alignment_config import AlignmentConfig
from rgalign.training.loop.graph import EMBED, STAGE1
from rgalign.training.loop.ranker_steps import ranker_step, seed_run
from rgalign.training.loop.reasoner_steps import (
    align_step,
    embed_step,
    generate_step,
    reembed_step,
    reward_step,
    select_step,
)
from rgalign.training.loop.step import OUT, OnStep, Step
from rgalign.training.selection.strategies import Strategy
from rgalign.training.tables.tables_config import TablesConfig

GENERATE, REWARD = "generate", "reward"
EMPTY = "empty.json"  # in the place of a selection that keeps no session
Stage2 = Literal["sft", "cl", "dpo"]


@dataclass(frozen=True)
class Workshop:
    """What every generator of steps needs."""

    config: TablesConfig
    root: Path
    progress: bool = True

    def out(self, step: str) -> Path:
        return self.root / step / OUT


def foundation(shop: Workshop) -> Iterator[Step]:
    """The first reasoner's latent queries and stage 1 on them."""
    config = shop.config
    yield embed_step(EMBED, config, progress=shop.progress)
    latents = shop.out(EMBED)
    rankers = {seed: config.stage1_config(latents, seed=seed) for seed in config.seeds}
    yield ranker_step(STAGE1, rankers, (EMBED,), config)


def judged(shop: Workshop) -> Iterator[Step]:
    """Candidate queries and their rewards, by the first seed's configuration."""
    config, latents = shop.config, shop.out(EMBED)
    yield generate_step(GENERATE, config.generate_config(latents), (EMBED,), progress=shop.progress)
    judging = config.reward_config(shop.out(GENERATE), seed_run(shop.out(STAGE1), config.seeds[0]))
    yield reward_step(REWARD, config, judging, (GENERATE, STAGE1, EMBED), progress=shop.progress)


def selection(shop: Workshop, strategy: Strategy, *, may_be_empty: bool = False) -> Iterator[Step]:
    """Best-of-N.

    Args:
        may_be_empty: a strategy that keeps no session is an outcome, see :func:`why_empty`.

    Raises:
        RewardError: nothing was kept when another table asked, for which that is an outcome.
    """
    config = shop.config.model_copy(update={"select": {**shop.config.select, "strategy": strategy}})
    asked = config.generate_config(shop.out(EMBED))
    chosen = select_step(select_name(strategy), config.select_config(shop.out(REWARD)), asked, (REWARD,))
    yield _or_empty(chosen) if may_be_empty else chosen
    if not may_be_empty and (why := why_empty(shop, strategy)):
        raise RewardError(where="selection", required=f"strategy {strategy} to keep a session", received=why)


def select_name(strategy: Strategy) -> str:
    return f"{strategy}/select"


def why_empty(shop: Workshop, strategy: Strategy) -> str:
    """Why the selection kept no session; empty when it did, or is not done yet."""
    file = shop.out(select_name(strategy)) / EMPTY
    return str(read_json(file)["why"]) if file.is_file() else ""


def _or_empty(chosen: Step) -> Step:
    def run(out: Path, on_step: OnStep | None) -> Mapping[str, Any]:
        try:
            (out / EMPTY).unlink(missing_ok=True)
            return chosen.run(out, on_step)
        except RewardError as error:
            if error.where != "selection":  # rewards that say nothing at all end the run
                raise
            write_json(out / EMPTY, {"why": error.received})
            return {"empty": error.received}

    def outcome(out: Path) -> Any:
        return "empty" if (out / EMPTY).is_file() else chosen.outcome(out)

    return replace(chosen, run=run, outcome=outcome)


def aligned(shop: Workshop, strategy: Strategy, seed: int, stage2: Stage2) -> Iterator[Step]:
    """SFT, the alignment after it, and the aligned reasoner's latent queries."""
    config, latents, rewards = shop.config, shop.out(EMBED), shop.out(REWARD)
    select_ = select_name(strategy)
    chosen = shop.out(select_)
    sft = alignment_name(strategy, seed, "sft")
    yield align_step(sft, "sft", _seeded(config.sft_config(chosen, rewards, latents), seed), (select_, EMBED))
    last = sft
    if stage2 != "sft":
        last = alignment_name(strategy, seed, stage2)
        make = config.align_config if stage2 == "cl" else config.dpo_config
        objective: Literal["contrast", "dpo"] = "contrast" if stage2 == "cl" else "dpo"
        aligning = _seeded(make(chosen, rewards, latents, shop.out(sft)), seed)
        yield align_step(last, objective, aligning, (select_, sft, EMBED))
    yield reembed_step(latents_name(strategy, seed, stage2), config, last, shop.out(last), progress=shop.progress)


def alignment_name(strategy: Strategy, seed: int, stage2: Stage2) -> str:
    return f"{strategy}/seed{seed}/{stage2}"


def latents_name(strategy: Strategy, seed: int, stage2: Stage2) -> str:
    return f"{alignment_name(strategy, seed, stage2)}_latents"


def stage3_name(strategy: Strategy, seed: int, stage2: Stage2) -> str:
    return f"{alignment_name(strategy, seed, stage2)}_stage3"


def recalibrated(shop: Workshop, name: str, strategy: Strategy, latents: str, warm: str = STAGE1) -> Iterator[Step]:
    """Stage 3: the rankers of ``warm`` go on with the latent queries of the step ``latents``."""
    config, select_ = shop.config, select_name(strategy)
    configs = {
        seed: config.recalibration_config(
            shop.out(latents), seed_run(shop.out(warm), seed), shop.out(select_), seed=seed
        )
        for seed in config.seeds
    }
    unaligned = (select_,) if config.recalibrate_on == "unaligned" else ()
    yield ranker_step(name, configs, (latents, warm, *unaligned), config)


def control_name(shop: Workshop, strategy: Strategy) -> str:
    """One control for all strategies, unless the sessions it trains on depend on them."""
    return f"{strategy}/control" if shop.config.recalibrate_on == "unaligned" else "control"


def control(shop: Workshop, strategy: Strategy) -> Iterator[Step]:
    """Stage 3 with the first reasoner's latent queries: the same seeds, epochs and start."""
    yield from recalibrated(shop, control_name(shop, strategy), strategy, EMBED)


def _seeded(config: AlignmentConfig, seed: int) -> AlignmentConfig:
    return config.model_copy(update={"seed": seed})
