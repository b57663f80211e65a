"""What sessions cost before a model sees them, over their number: simulate, encode for the towers, prompts to compute.

    python -m rgalign.bench.data_work [--sessions 10000 100000 1000000]    rows: bench/results/data.jsonl

``simulate``        the simulator, all cores
``encode``          shards to tensors by columns; the baseline encodes a session at a time, on a sample, and is compared
``embedding work``  distinct prompts of the training sessions and the tokens left of them once equal beginnings are
                    computed once; the report divides by the engine's measured rate, and says that it does

More sessions than are measured, 10 million for one, are extrapolated by the report from these rows and never measured.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console

from rgalign.bench.rows import RESULTS, append, in_turn, row, spread
from rgalign.data.dataset import Dataset, read_shard
from rgalign.data.encode import NumericStats, SessionEncoder
from rgalign.data.simulator import SimulatorConfig, simulate
from rgalign.errors import ModelNotFoundError
from rgalign.prompt import PromptEncoder
from rgalign.reasoner.prefix_tree import TokenIds
from rgalign.reasoner.pretrained import load_tokenizer

SAMPLE = 64  # sessions that are also encoded one by one
MODEL = "smollm2"
CHUNK = 4_096

console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sessions", type=int, nargs="+", default=(10_000, 100_000, 1_000_000))
    parser.add_argument("--prompts", type=int, default=100_000, help="the most whose tokens are counted")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--template", default="paper")
    parser.add_argument("--out", default="data.jsonl", help=f"file in {RESULTS}, or an absolute path")
    arguments = parser.parse_args()
    for sessions in arguments.sessions:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "simulated"
            record(arguments.out, [simulate_row(path, sessions)])
            dataset = Dataset.open(path)
            record(arguments.out, encode_rows(dataset, sessions, arguments.repeats))
            if sessions <= arguments.prompts:
                record(arguments.out, work_rows(dataset, sessions, arguments.template))


def record(out: str, rows: Sequence[dict[str, Any]]) -> None:
    for each in rows:
        names = ("sessions", "sessions_per_s", "distinct_prompts", "computed_tokens")
        console.print(each["benchmark"], each.get("variant", ""), *(f"{n} {each[n]}" for n in names if n in each))
    console.print(f"appended to {append(out, rows)}")


def simulate_row(path: Path, sessions: int) -> dict[str, Any]:
    workers = len(os.sched_getaffinity(0))
    config = SimulatorConfig(num_sessions=sessions)
    began = time.perf_counter()
    simulate(config, path, workers=workers, progress=False)
    seconds = time.perf_counter() - began
    return row("data: simulate", variant="rgalign", sessions=sessions, workers=workers, intents=config.num_intents,
               seconds=round(seconds, 3), sessions_per_s=round(sessions / seconds, 1), repeats=1)  # fmt: skip


def encode_rows(dataset: Dataset, sessions: int, repeats: int) -> list[dict[str, Any]]:
    """The training split by columns, shard by shard, beside its first sessions one by one."""
    columns = [*dataset.schema.columns, "candidates", "clicked"]
    shards = dataset.shards("train")
    sample = read_shard(shards[0], columns).slice(0, SAMPLE).combine_chunks()
    encoder = SessionEncoder(dataset.schema, dataset.catalog, NumericStats.fit(sample, dataset.schema))
    require_equal(encoder, sample)
    count = dataset.num_rows("train")

    def by_columns() -> None:
        for shard in shards:
            encoder.encode(read_shard(shard, columns))

    seconds = in_turn({"columns": by_columns, "one": lambda: one_by_one(encoder, sample)}, repeats)
    shape = {"sessions": sessions, "split": "train", "intents": len(dataset.catalog), "repeats": repeats}
    return [
        row("data: encode", variant="rgalign, by columns", **shape, seconds=spread(seconds["columns"]),
            sessions_per_s=spread([count / each for each in seconds["columns"]], 1)),
        row("data: encode", variant="one session at a time", **shape, sample=len(sample),
            seconds=spread(seconds["one"]), sessions_per_s=spread([len(sample) / each for each in seconds["one"]], 1)),
    ]  # fmt: skip


def one_by_one(encoder: SessionEncoder, sample: pa.Table) -> list[Any]:
    return [encoder.encode(sample.slice(place, 1)) for place in range(len(sample))]


def require_equal(encoder: SessionEncoder, sample: pa.Table) -> None:
    """Raises AssertionError if a session encoded alone has other numbers than among others."""
    together, alone = encoder.encode(sample), one_by_one(encoder, sample)
    for name in ("categorical", "numerical"):
        if not torch.equal(torch.cat([getattr(each, name) for each in alone]), getattr(together, name)):
            raise AssertionError(f"{name} values of sessions encoded one by one differ")


def work_rows(dataset: Dataset, sessions: int, template: str) -> list[dict[str, Any]]:
    """Nothing without the tokenizer, which is said."""
    try:
        tokenizer = load_tokenizer(MODEL)
    except ModelNotFoundError as error:
        console.print(f"no embedding work: {error}")
        return []
    encoder = PromptEncoder(tokenizer, dataset.schema, dataset.catalog, template=template)
    table = dataset.table("train", dataset.schema.columns)
    distinct: dict[bytes, TokenIds] = {}
    tokens = 0
    began = time.perf_counter()
    for start in range(0, len(table), CHUNK):
        for ids in encoder.encode_many(table.slice(start, CHUNK).to_pylist()):
            distinct[ids.tobytes()] = ids
            tokens += len(ids)
    seconds = time.perf_counter() - began
    own, suffix = list(distinct.values()), len(encoder.suffix_ids)
    return [
        row(
            "data: embedding work", variant="rgalign", sessions=sessions, split="train", model=MODEL, template=template,
            prefix_tokens=len(encoder.prefix_ids), prompts_read=len(table), distinct_prompts=len(own),
            whole_tokens=tokens + len(table) * (len(encoder.prefix_ids) + suffix),
            own_tokens=sum(map(len, own)) + len(own) * suffix,
            computed_tokens=shared_tokens(own) + len(own) * suffix,
            seconds=round(seconds, 3), prompts_per_s=round(len(table) / seconds, 1), repeats=1,
        )
    ]  # fmt: skip


def shared_tokens(prompts: Sequence[TokenIds]) -> int:
    """Nodes of the prefix tree of prompts: each token row without what it begins with like the row before, sorted."""
    rows = sorted(prompts, key=lambda ids: ids.astype(">u4").tobytes())
    total, before = 0, np.zeros(0, np.int32)
    for ids in rows:
        width = min(len(ids), len(before))
        differs = np.flatnonzero(ids[:width] != before[:width])
        total += len(ids) - (int(differs[0]) if len(differs) else width)
        before = ids
    return total


if __name__ == "__main__":
    main()
