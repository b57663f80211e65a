"""Table 4, best-of-N: V1 to V4 under the frozen rankers of stage 1, and some of them with stage 3 behind it.

The paper's rows called QE-Rec are aligned reasoners without stage 3: its V2 row is the third row of its table 2. A
strategy that keeps no session has no reasoner; its row says so and the others go on.
"""

from __future__ import annotations

from collections.abc import Iterator

from rgalign.training.loop.graph import STAGE1
from rgalign.training.loop.step import Step
from rgalign.training.selection.strategies import Strategy
from rgalign.training.tables.row import Row, RowRuns, TablePlan
from rgalign.training.tables.shared_steps import (
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
    why_empty,
)
from rgalign.training.tables.table2 import CONTROL, control_row, frozen_row, full_row

NAMES: dict[Strategy, str] = {
    "V1": "V1 (Full Retention)",
    "V2": "V2 (Non-base)",
    "V3": "V3 (Intersection)",
    "V4": "V4 (Union)",
}
REMARKS = (
    (
        "The rows that the paper calls QE-Rec are aligned reasoners under the frozen rankers of stage 1 (its "
        "V2 row is the third of its table 2); here they are called so."
    ),
    "The paper leaves open how NDCG, edit distance and cosine meet in V3 and V4; docs/reward.md says how they do here.",
    (
        "Strategies keep different numbers of sessions, and an epoch is as long as what is kept: a difference"
        " between two is one of data and of steps together."
    ),
)


def table4_steps(shop: Workshop) -> Iterator[Step]:
    config = shop.config
    yield from foundation(shop)
    yield from judged(shop)
    kept: list[Strategy] = []
    for strategy in config.strategies:
        yield from selection(shop, strategy, may_be_empty=True)
        if not why_empty(shop, strategy):
            kept.append(strategy)
    for seed in config.alignment_seeds:
        for strategy in kept:
            yield from aligned(shop, strategy, seed, "cl")
            if strategy in config.recalibrated:
                yield from control(shop, strategy)
                latents = latents_name(strategy, seed, "cl")
                yield from recalibrated(shop, stage3_name(strategy, seed, "cl"), strategy, latents)


def table4_plan(shop: Workshop) -> TablePlan:
    strategies = shop.config.strategies
    kept = [strategy for strategy in strategies if not why_empty(shop, strategy)]
    recalibrated_ = [strategy for strategy in shop.config.recalibrated if strategy in kept]
    rows = [
        Row("qe_rec", ("QE-Rec", "none aligned"), (RowRuns(STAGE1),)),
        *(_frozen(shop, strategy, kept) for strategy in strategies),
        *_controls(shop, recalibrated_),
        *(_full(shop, strategy, recalibrated_[0]) for strategy in recalibrated_),
    ]
    return TablePlan(4, "Best-of-N", ("Model", "Strategy"), tuple(rows), remarks=REMARKS)


def _frozen(shop: Workshop, strategy: Strategy, kept: list[Strategy]) -> Row:
    name, cells = f"{strategy}_cl_frozen", ("RGAlign-Rec, frozen ranker", NAMES[strategy])
    if strategy not in kept:
        return Row(name, cells, note=f"no session kept: {why_empty(shop, strategy)}")
    others = () if strategy == kept[0] else (f"{kept[0]}_cl_frozen",)
    return frozen_row(shop, name, cells, strategy, ("qe_rec", *others))


def _controls(shop: Workshop, strategies: list[Strategy]) -> list[Row]:
    """One for all strategies, or one each where its training sessions depend on them."""
    by_step = {control_name(shop, strategy): strategy for strategy in reversed(strategies)}
    return [
        control_row(shop, strategy, (CONTROL, NAMES[strategy] if "/" in step else "none aligned"), ("qe_rec",))
        for step, strategy in reversed(by_step.items())
    ]


def _full(shop: Workshop, strategy: Strategy, first: Strategy) -> Row:
    beside = control_name(shop, strategy).replace("/", "_")
    others = () if strategy == first else (f"{first}_full",)
    cells = ("RGAlign-Rec (Full)", NAMES[strategy])
    return full_row(shop, f"{strategy}_full", cells, strategy, "cl", (beside, "qe_rec", *others))
