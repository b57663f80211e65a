"""Table 3, what stands for the latent query: LTP, mean, EOS, or a sentence encoder's vector of a decoded question.

The paper has QE-Rec and Full, each with BGE and LTP. RG-CL moves the last token's state (eq. 11) and is not defined for
another vector, a 384-wide sentence encoder's least of all, so the other poolings are aligned by SFT alone. Comparing
them with Full would mix pooling and objective; so there are three stages:

    QE-Rec              every pooling, first reasoner
    RGAlign-Rec (SFT)   every pooling, the same SFT-aligned reasoner, stage 3
    RGAlign-Rec (Full)  LTP, SFT&CL, stage 3
"""

from __future__ import annotations

from collections.abc import Iterator

from rgalign.training.embed import with_backend
from rgalign.training.loop.graph import STAGE1
from rgalign.training.loop.ranker_steps import ranker_step
from rgalign.training.loop.reasoner_steps import embed_step
from rgalign.training.loop.step import Step
from rgalign.training.selection.strategies import Strategy
from rgalign.training.tables.pooled_latents import PooledConfig, pooled_step
from rgalign.training.tables.row import Improvement, Row, RowRuns, TablePlan
from rgalign.training.tables.shared_steps import (
    Workshop,
    alignment_name,
    foundation,
    judged,
    recalibrated,
    selection,
)
from rgalign.training.tables.table2 import full, full_row, strategy_of
from rgalign.training.tables.tables_config import ENGINE_POOLINGS

NAMES = {"ltp": "LTP", "mean": "Mean", "eos": "EOS", "external": "Sentence encoder"}
REMARKS = (
    (
        "RG-CL moves the last token's state, so the other poolings are aligned by SFT alone. The rows (SFT) "
        "compare the poolings of one reasoner; Full against the sentence encoder is the paper's last line."
    ),
    (
        "The sentence encoder is `embed.sentence_encoder` (all-MiniLM-L6-v2 by default); the paper names BGE "
        "without a version. It reads a question that the reasoner decodes, which a service would wait for."
    ),
    "All poolings share candidates, rewards and selection, which are judged in the space of LTP.",
    (
        "No control stands beside stage 3: the rows of one stage trained for the same epochs and are compared"
        " with each other. Table 2 has the control of LTP."
    ),
)


def table3_steps(shop: Workshop) -> Iterator[Step]:
    config, strategy = shop.config, strategy_of(shop.config)
    yield from foundation(shop)
    for pooling in config.poolings:
        yield from _first(shop, pooling)
    yield from judged(shop)
    yield from selection(shop, strategy)
    for seed in config.alignment_seeds:
        yield from full(shop, strategy, seed, "sft")
        for pooling in config.poolings:
            yield from _aligned(shop, strategy, seed, pooling)
        yield from full(shop, strategy, seed, "cl")


def table3_plan(shop: Workshop) -> TablePlan:
    config, strategy = shop.config, strategy_of(shop.config)
    qe_rec = [
        Row(f"qe_rec_{pooling}", ("QE-Rec", NAMES[pooling]), (RowRuns(_stage1(pooling)),), ("qe_rec",))
        for pooling in config.poolings
    ]
    sft = f"{strategy}_sft"
    tuned = [_sft_row(shop, strategy, pooling, (sft, f"qe_rec_{pooling}")) for pooling in config.poolings]
    against = (*(row.name for row in tuned), sft, "qe_rec")
    rows = (
        *qe_rec,
        Row("qe_rec", ("QE-Rec", NAMES["ltp"]), (RowRuns(STAGE1),)),
        *tuned,
        full_row(shop, sft, ("RGAlign-Rec (SFT)", NAMES["ltp"]), strategy, "sft", ("qe_rec",)),
        full_row(shop, f"{strategy}_full", ("RGAlign-Rec (Full)", NAMES["ltp"]), strategy, "cl", against),
    )
    improvements = tuple(
        Improvement(f"LTP (Full) vs {NAMES[pooling]} (Rel.)", f"{strategy}_full", f"{sft}_{pooling}", "relative")
        for pooling in config.poolings
    )
    return TablePlan(3, "Pooling", ("Model", "Pooling"), rows, improvements, (*REMARKS, *_precision(shop)))


def _precision(shop: Workshop) -> Iterator[str]:
    """Of what computes which pooling, where it is not the same for all."""
    other = [pooling for pooling in shop.config.poolings if pooling not in ENGINE_POOLINGS]
    first = with_backend(shop.config.embed)
    if other and (first.backend != "hf" or shop.config.pooled):
        how = f"the engine in {first.engine_dtype}" if first.backend == "engine" else first.backend
        dtype = shop.config.pooled_embedding(other[0]).dtype
        names = " and ".join(NAMES[pooling] for pooling in other)
        yield f"{names}: computed by transformers in {dtype}; the rest by {how}."


def _stage1(pooling: str) -> str:
    return f"{pooling}/stage1"


def _embed(pooling: str) -> str:
    return f"{pooling}/embed"


def _stage3(strategy: Strategy, seed: int, pooling: str) -> str:
    return f"{alignment_name(strategy, seed, 'sft')}_{pooling}_stage3"


def _first(shop: Workshop, pooling: str) -> Iterator[Step]:
    """The first reasoner with this pooling, and the rankers of stage 1 on it."""
    config = shop.config.model_copy(update={"embed": shop.config.pooled_embedding(pooling)})
    yield embed_step(_embed(pooling), config, progress=shop.progress)
    latents = shop.out(_embed(pooling))
    rankers = {seed: config.stage1_config(latents, seed=seed) for seed in config.seeds}
    yield ranker_step(_stage1(pooling), rankers, (_embed(pooling),), config)


def _aligned(shop: Workshop, strategy: Strategy, seed: int, pooling: str) -> Iterator[Step]:
    """The SFT-aligned reasoner with this pooling, and stage 3 on it."""
    sft = alignment_name(strategy, seed, "sft")
    latents = f"{sft}_{pooling}_latents"
    config = PooledConfig(
        run=shop.out(sft), dataset=shop.config.dataset, embedding=shop.config.pooled_embedding(pooling)
    )
    yield pooled_step(latents, sft, config, progress=shop.progress)
    yield from recalibrated(shop, _stage3(strategy, seed, pooling), strategy, latents, warm=_stage1(pooling))


def _sft_row(shop: Workshop, strategy: Strategy, pooling: str, against: tuple[str, ...]) -> Row:
    seeds = shop.config.alignment_seeds
    runs = tuple(RowRuns(_stage3(strategy, seed, pooling), alignment_seed=seed) for seed in seeds)
    return Row(f"{strategy}_sft_{pooling}", ("RGAlign-Rec (SFT)", NAMES[pooling]), runs, against)
