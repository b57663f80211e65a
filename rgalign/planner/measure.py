"""Measures a replica's curve on this machine, from a bundle and contexts as its users have."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rgalign.bundle import read_bundle
from rgalign.errors import ConfigError, DataError
from rgalign.planner.curve import Curve
from rgalign.recommender import Recommender, RecommenderConfig
from rgalign.recommender.context import ContextReader
from rgalign.recommender.recommender import engine_of

ROWS = (1, 2, 4, 8, 16, 32)
WARM_UP = 20


def measure(
    path: Path,
    contexts: Sequence[Mapping[str, Any]],
    config: RecommenderConfig,
    *,
    repeats: int = 15,
    requests: int = 200,
    machine: str = "",
    progress: Callable[[str], None] = lambda _: None,
) -> Curve:
    """Batches of 1, 2, 4 … rows in turn, then requests one after another through a Recommender for the host's part.

    Args:
        contexts: drawn from; their lengths are the curve's.

    Raises:
        DataError: a damaged bundle, no context, or a malformed one. ConfigError: a bundle without a reasoner.
    """
    if not contexts:
        raise DataError(where="measure contexts", required="at least one context", received="none")
    began = time.perf_counter()
    bundle = read_bundle(path)
    reasoner = engine_of(bundle, config)
    if reasoner is None or bundle.prompts is None:
        raise ConfigError(where=str(path), required="a bundle with a reasoner", received="a ranker without one")
    prompts = bundle.prompts
    suffix = np.asarray(prompts.suffix_ids, np.int32)
    with Recommender(bundle, config, make_reasoner=lambda *_: reasoner) as recommender:
        load_s = time.perf_counter() - began
        reader = ContextReader(bundle.schema)
        asked = [np.concatenate([prompts.encode(reader.read(each)).slot_ids, suffix]) for each in contexts]
        rng = np.random.default_rng(0)

        def batch_ms(rows: int) -> tuple[int, float]:
            batch: list[NDArray[np.int32]] = [asked[i] for i in rng.integers(0, len(asked), rows)]
            start = time.perf_counter()
            np.asarray(reasoner.embed(batch, prefix_ids=prompts.prefix_ids))
            return sum(map(len, batch)), (time.perf_counter() - start) * 1e3

        counts = [rows for rows in ROWS if rows <= config.max_rows] or [1]
        samples: dict[int, list[tuple[int, float]]] = {rows: [] for rows in counts}
        for repeat in range(repeats + 1):  # the first warms up
            progress(f"batches, {repeat} of {repeats}")
            for rows in counts:
                one = batch_ms(rows)
                if repeat:
                    samples[rows].append(one)
        curve = _curve_of(samples)
        tokens, ms = zip(*curve, strict=True)
        draft = Curve(tokens=tokens, ms=ms, lengths=(1,))
        alone = [draft.ms_of(len(ids)) for ids in asked]
        progress("the host")
        timings = asyncio.run(_one_by_one(recommender, contexts, alone, requests))
    jitter = [took / draft.ms_of(count) for each in samples.values() for count, took in each]
    read_ms, tower_ms, answer_ms, more_ms = np.median(timings, axis=0).tolist()
    return Curve(
        machine=machine,
        tokens=tokens,
        ms=tuple(each + max(more_ms, 0.0) for each in ms),
        jitter=tuple(round(each, 4) for each in jitter),
        lengths=tuple(len(each) for each in asked),
        longest=prompts.max_tokens - len(prompts.prefix_ids),
        read_ms=read_ms,
        tower_ms=tower_ms,
        answer_ms=answer_ms,
        rows_per_batch=config.max_rows,
        load_s=load_s,
    )


def _curve_of(samples: Mapping[int, Sequence[tuple[int, float]]]) -> list[tuple[float, float]]:
    """Median milliseconds at the median tokens of each number of rows; what a batch has more or less of tokens than
    the median is taken out in proportion."""
    points = []
    for each in samples.values():
        counts, took = np.asarray(each, np.float64).T
        middle = float(np.median(counts))
        points.append((middle, float(np.median(took * middle / counts))))
    return [point for i, point in enumerate(points) if i == 0 or point[0] > points[i - 1][0]]


async def _one_by_one(
    recommender: Recommender, contexts: Sequence[Mapping[str, Any]], alone: Sequence[float], requests: int
) -> list[tuple[float, float, float, float]]:
    """Each request's milliseconds: of the host until the batcher has it, after that, and after the reasoner; and what
    the reasoner took beyond ``alone``.

    The first takes in all that is not the reasoner's, hand-overs between threads too; the second is this thread's CPU
    time that the others leave, for it hides behind the reasoner. The last is what a batch costs where others run and
    the caches have gone cold: before each request is a pause, as there is in service.
    """
    parts = []
    pauses = np.random.default_rng(1).uniform(0, 2e-3 * np.mean(alone), WARM_UP + requests)
    for number, pause in enumerate(pauses.tolist()):
        await asyncio.sleep(pause)
        start, cpu_start = time.perf_counter(), time.thread_time()
        answer = await recommender.arecommend(contexts[number % len(contexts)], 3)
        total, cpu = (time.perf_counter() - start) * 1e3, (time.thread_time() - cpu_start) * 1e3
        taken = answer.timings
        if number >= WARM_UP:
            before = max(total - taken.reason_ms - taken.rank_ms, 0.0)
            after = max(cpu - taken.tokenise_ms - taken.rank_ms, 0.0)
            parts.append((before, after, taken.rank_ms, taken.reason_ms - alone[number % len(alone)]))
    return parts
