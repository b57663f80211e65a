"""What each of the engine's techniques gives: they are switched on one after the other and timed in turn.

    transformers, whole prompt -> the same in the engine's fused float32 forward pass -> prefix cached
    -> last layer for the last token only -> 8-bit weights, 12-bit activations -> on AMX tiles, where the CPU has them
    -> prompts packed together

Up to the last step prompts are computed one by one; the last one also computes equal beginnings once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rgalign import _C
from rgalign.bench.engine_peers import Matrix, Variant, with_transformers
from rgalign.bench.engine_prompts import Workload
from rgalign.reasoner.engine.artifact import INSTRUCTION_SETS, load_model, read_manifest
from rgalign.reasoner.engine.reasoner import EngineReasoner, load_engine
from rgalign.reasoner.prefix_tree import TokenIds

NOTHING = np.zeros(0, np.int32)
EIGHT_BITS = "int8a12"


class Steps:
    """The engine of a float32 directory, one prompt at a time, with and without its techniques."""

    def __init__(self, directory: Path, workload: Workload, threads: int) -> None:
        manifest = read_manifest(directory)
        self._hidden = manifest.config.hidden
        self._workload = workload
        model = load_model(directory, manifest)
        self._whole = _C.EngineSession(model, threads)
        self._behind_prefix = _C.EngineSession(model, threads)
        self._behind_prefix.set_prefix(np.array(workload.prefix_ids, np.int32))

    def whole(self, prompts: Sequence[TokenIds]) -> Matrix:
        return self._each(self._whole, [self._workload.whole(ids) for ids in prompts], pruned=False)

    def behind_prefix(self, prompts: Sequence[TokenIds]) -> Matrix:
        return self._each(self._behind_prefix, prompts, pruned=False)

    def pruned(self, prompts: Sequence[TokenIds]) -> Matrix:
        return self._each(self._behind_prefix, prompts, pruned=True)

    def _each(self, session: Any, prompts: Sequence[TokenIds], *, pruned: bool) -> Matrix:
        """Without pruning, the states of all tokens are asked for."""
        rows = []
        for ids in prompts:
            places = np.arange(len(ids), dtype=np.int32)
            segment = np.array([[0, len(ids), 0, 0]], np.int32)
            runs = np.zeros((0, 2), np.int32)
            last = places[-1:] if pruned else places
            rows.append(session.forward(self._hidden, ids, places, NOTHING, segment, runs, last)[-1])
        return np.stack(rows)


def waterfall(model: Any, engines: dict[str, Path], workload: Workload, threads: int) -> dict[str, Variant]:
    """The steps in order; each holds all techniques before it."""
    steps = Steps(engines["fp32"], workload, threads)
    packed = load_engine(engines[EIGHT_BITS], threads)
    whole = dict(with_transformers(model, workload))["transformers fp32, whole prompt"]

    def eight_bits(instructions: str) -> Variant:
        manifest = read_manifest(engines[EIGHT_BITS])
        loaded = load_model(engines[EIGHT_BITS], manifest, instructions)
        eight = EngineReasoner(loaded, manifest, threads=threads)

        def one_by_one(prompts: Sequence[TokenIds]) -> Matrix:
            return np.concatenate([eight.embed([ids], prefix_ids=workload.prefix_ids).numpy() for ids in prompts])

        return step(one_by_one, EIGHT_BITS)

    def all_together(prompts: Sequence[TokenIds]) -> Matrix:
        states: Matrix = packed.embed(prompts, prefix_ids=workload.prefix_ids).numpy()
        return states

    def step(embed: Callable[[Sequence[TokenIds]], Matrix], dtype: str) -> Variant:
        return Variant(embed, dtype, 0.99999 if dtype == "fp32" else 0.999)

    tiles = {"AMX tiles": eight_bits("amx")} if "amx" in INSTRUCTION_SETS else {}
    return {
        "transformers, whole prompt": whole,
        "fused forward": step(steps.whole, "fp32"),
        "prefix cached": step(steps.behind_prefix, "fp32"),
        "last layer pruned": step(steps.pruned, "fp32"),
        "8-bit weights": eight_bits(next(name for name in INSTRUCTION_SETS if name != "amx")),
        **tiles,
        "packed batch": step(all_together, EIGHT_BITS),
    }
