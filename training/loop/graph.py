"""The steps of a run in order.

    embed  baseline  stage1
    round1/  generate  reward  select  sft  align  reembed  stage3  control  verdict
    round2/  judge  generate  ...                            only if the verdict of round 1 is "better"
    evaluate

Stage 3 goes on from the weights of the ranker before it, on the aligned reasoner's latent queries; the control goes on
from the weights of the control before it (in round 1 both are stage 1's), on the latent queries of the reasoner that
the loop began with: the same seeds, epochs and settings.

From round 2 on the reward rankers are those of ``judge``, stage 1 anew on the aligned reasoner's latent queries: a
ranker that was warm-started from weights that know every click cannot be cross-fitted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rgalign.training.loop.arms import REPORT, evaluate_step
from rgalign.training.loop.loop_config import LoopConfig
from rgalign.training.loop.ranker_steps import ranker_step, seed_run, verdict_step
from rgalign.training.loop.reasoner_steps import (
    align_step,
    embed_step,
    generate_step,
    reembed_step,
    reward_step,
    select_step,
)
from rgalign.training.loop.step import OUT, Step, StepFolder

EMBED, BASELINE, STAGE1, EVALUATE = "embed", "baseline", "stage1", "evaluate"


@dataclass(frozen=True)
class Standing:
    """What a round goes on from. Args: names of the steps that made it."""

    latents: str
    ranker: str
    control: str
    judge: str


def steps(loop: LoopConfig, root: Path, *, progress: bool = True) -> Iterator[Step]:
    """Every step when its turn has come: which steps follow a verdict depends on it, so complete each before the next.

    A verdict that is not there yet is taken for ``better``.
    """
    yield embed_step(EMBED, loop, progress=progress)
    baselines = {seed: loop.baseline_config(seed=seed) for seed in loop.seeds}
    yield ranker_step(BASELINE, baselines, (), loop)
    latents = root / EMBED / OUT
    yield ranker_step(STAGE1, {seed: loop.stage1_config(latents, seed=seed) for seed in loop.seeds}, (EMBED,), loop)
    standing = adopted = Standing(EMBED, STAGE1, STAGE1, STAGE1)
    for number in range(1, loop.loops + 1):
        here = f"round{number}"
        reached = Standing(f"{here}/reembed", f"{here}/stage3", f"{here}/control", f"{here}/judge")
        yield from _round(loop, root, here, standing, reached, progress)
        verdict = f"{here}/verdict"
        yield verdict_step(verdict, loop, reached.ranker, standing.ranker, root)
        better = is_better(root / verdict)
        if better or number == 1:  # the first round is what is measured, whatever comes of it
            adopted = reached
        if not better:
            break
        standing = reached
    arms = {"baseline": BASELINE, "qe_rec": STAGE1, "control": adopted.control, "full": adopted.ranker}
    yield evaluate_step(EVALUATE, loop, arms, root)


def report_path(root: Path) -> Path:
    return root / EVALUATE / OUT / REPORT


def is_better(verdict: Path) -> bool:
    folder = StepFolder(verdict)
    return not folder.is_done or folder.metrics()["result"]["verdict"] == "better"


def _round(
    loop: LoopConfig, root: Path, here: str, given: Standing, reached: Standing, progress: bool
) -> Iterator[Step]:
    def out(step: str) -> Path:
        return root / step / OUT

    first = loop.seeds[0]
    old, latents = out(given.latents), out(reached.latents)
    judge = given.judge
    if given.latents != EMBED:
        judge = f"{here}/judge"
        yield ranker_step(judge, {first: loop.stage1_config(old, seed=first)}, (given.latents,), loop)
    names = ("generate", "reward", "select", "sft", "align")
    generate, reward, select, sft, align = (f"{here}/{name}" for name in names)
    asking = loop.generate_config(old)
    yield generate_step(generate, asking, (given.latents,), progress=progress)
    judging = loop.reward_config(out(generate), seed_run(out(judge), first))
    yield reward_step(reward, loop, judging, (generate, judge, given.latents), progress=progress)
    yield select_step(select, loop.select_config(out(reward)), asking, (reward,))
    yield align_step(sft, "sft", loop.sft_config(out(select), out(reward), old), (select, given.latents))
    aligning = loop.align_config(out(select), out(reward), old, out(sft))
    yield align_step(align, loop.objective, aligning, (select, sft, given.latents))
    yield reembed_step(reached.latents, loop, align, out(align), progress=progress)
    for step, before, store in ((reached.ranker, given.ranker, latents), (reached.control, given.control, out(EMBED))):
        warm = out(before)
        configs = {
            seed: loop.recalibration_config(store, seed_run(warm, seed), out(select), seed=seed) for seed in loop.seeds
        }
        read = reached.latents if store == latents else EMBED
        unaligned = (select,) if loop.recalibrate_on == "unaligned" else ()
        yield ranker_step(step, configs, (read, before, *unaligned), loop)
