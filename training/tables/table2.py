"""Table 2, main results: baseline, QE-Rec, +CL, +DPO, Full, with the control of the rows that stage 3 follows.

    Baseline                                   AutoInt + MMoE, no reasoner
    QE-Rec                                     stage 1 on the first reasoner
    RGAlign-Rec  SFT&CL   stage 3 No           the aligned reasoner under the frozen rankers of stage 1
    RGAlign-Rec  SFT&DPO  stage 3 Yes          rankers recalibrated on the DPO-aligned reasoner
    RGAlign-Rec (Full)  SFT&CL  stage 3 Yes    rankers recalibrated on the CL-aligned reasoner

Added: the control (stage 3 on the first reasoner, so a gain over it is no longer training), and the frozen row once
more with the query tower's input statistics taken anew, which tells a moved latent space from a worse one.
"""

from __future__ import annotations

from collections.abc import Iterator

from rgalign.training.loop.graph import BASELINE, STAGE1
from rgalign.training.loop.ranker_steps import ranker_step
from rgalign.training.loop.step import Step
from rgalign.training.selection.strategies import Strategy
from rgalign.training.tables.row import Improvement, Row, RowRuns, Scored, TablePlan
from rgalign.training.tables.shared_steps import (
    Stage2,
    Workshop,
    aligned,
    control,
    control_name,
    foundation,
    judged,
    latents_name,
    recalibrated,
    selection,
    stage3_name,
)
from rgalign.training.tables.tables_config import TablesConfig

CONTROL, ANEW = "  control of stage 3", "inputs standardised anew"
REMARKS = (
    (
        "SFT&CL without stage 3 reads an aligned reasoner through rankers that never saw it, as in the paper;"
        f" the row '{ANEW}' (not in the paper) gives their query towers new input statistics and nothing else."
    ),
    "The control is not in the paper: rankers of stage 1 trained on for as many epochs with the first reasoner.",
    (
        "Rel. Improv. and Error Reduction are those of Full, not of each metric's best row, which would be "
        "chosen after the fact; the paper bolds an MRR and states the improvement of another row."
    ),
    "MRR is the mean of 1 / rank over all relevant intents (mrr_all), the one that fits the paper's numbers.",
)


def strategy_of(config: TablesConfig) -> Strategy:
    return config.select_config(config.dataset).strategy


def table2_steps(shop: Workshop) -> Iterator[Step]:
    config, strategy = shop.config, strategy_of(shop.config)
    yield from foundation(shop)
    yield ranker_step(BASELINE, {seed: config.baseline_config(seed=seed) for seed in config.seeds}, (), config)
    yield from judged(shop)
    yield from selection(shop, strategy)
    yield from control(shop, strategy)
    for seed in config.alignment_seeds:
        for stage2 in ("cl", "dpo"):
            yield from full(shop, strategy, seed, stage2)


def full(shop: Workshop, strategy: Strategy, seed: int, stage2: Stage2) -> Iterator[Step]:
    """One alignment with stage 3 behind it."""
    yield from aligned(shop, strategy, seed, stage2)
    latents = latents_name(strategy, seed, stage2)
    yield from recalibrated(shop, stage3_name(strategy, seed, stage2), strategy, latents)


def table2_plan(shop: Workshop) -> TablePlan:
    strategy = strategy_of(shop.config)
    cl, frozen, anew, dpo = (f"{strategy}_{name}" for name in ("full", "cl_frozen", "cl_restandardised", "dpo"))
    beside = control_name(shop, strategy).replace("/", "_")
    first = ("qe_rec", "baseline")
    frozen_cells = ("Tuned", "SFT&CL", "No")
    rows = (
        Row("baseline", ("Baseline", "-", "-", "-"), (RowRuns(BASELINE),)),
        Row("qe_rec", ("QE-Rec", "Raw LLM", "-", "No"), (RowRuns(STAGE1),), ("baseline",)),
        frozen_row(shop, frozen, ("RGAlign-Rec", *frozen_cells), strategy, first),
        frozen_row(shop, anew, (f"  {ANEW}", *frozen_cells), strategy, (*first, frozen), "restandardised"),
        control_row(shop, strategy, (CONTROL, "Raw LLM", "-", "Yes"), first),
        full_row(shop, dpo, ("RGAlign-Rec", "Tuned", "SFT&DPO", "Yes"), strategy, "dpo", (beside, *first)),
        full_row(shop, cl, ("RGAlign-Rec (Full)", "Tuned", "SFT&CL", "Yes"), strategy, "cl", (beside, *first, dpo)),
    )
    improvements = (
        Improvement("Rel. Improv. (Full)", cl, "baseline", "relative"),
        Improvement("Error Reduction (Full)", cl, "baseline", "error_reduction"),
    )
    head = ("Model", "Stage 1", "Stage 2", "Stage 3")
    return TablePlan(2, "Main results", head, rows, improvements, REMARKS)


def frozen_row(
    shop: Workshop,
    name: str,
    cells: tuple[str, ...],
    strategy: Strategy,
    against: tuple[str, ...],
    scored: Scored = "frozen",
) -> Row:
    """The CL-aligned reasoner under the rankers of stage 1."""
    seeds = shop.config.alignment_seeds
    runs = tuple(RowRuns(STAGE1, latents_name(strategy, seed, "cl"), seed, scored) for seed in seeds)
    return Row(name, cells, runs, against)


def control_row(shop: Workshop, strategy: Strategy, cells: tuple[str, ...], against: tuple[str, ...]) -> Row:
    step = control_name(shop, strategy)
    return Row(step.replace("/", "_"), cells, (RowRuns(step),), against)


def full_row(
    shop: Workshop, name: str, cells: tuple[str, ...], strategy: Strategy, stage2: Stage2, against: tuple[str, ...]
) -> Row:
    """Rankers of stage 3, one set for each alignment seed."""
    seeds = shop.config.alignment_seeds
    runs = tuple(RowRuns(stage3_name(strategy, seed, stage2), alignment_seed=seed) for seed in seeds)
    return Row(name, cells, runs, against)
