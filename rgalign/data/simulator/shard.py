"""One shard: its sessions drawn block by block and written as two parquet files, rows and truth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rgalign.data.dataset import COLUMNS
from rgalign.data.simulator.clicks import Clicks
from rgalign.data.simulator.columns import FEATURE_COLUMNS, ids, intent_lists, session_columns, truth_columns
from rgalign.data.simulator.grammar import PROBLEMS
from rgalign.data.simulator.when import SPLITS, Part, draw_times
from rgalign.data.simulator.world import Session, World

BLOCK = 4096  # sessions drawn at a time: large enough for numpy, small enough for the cache

Counts = dict[str, float]


def write_shard(
    world: World, part: Part, directory: Path, advance: Callable[[int], None] = lambda rows: None
) -> Counts:
    """Writes ``SPLIT/part-N.parquet`` and ``truth/SPLIT/part-N.parquet``; returns what the report adds up.

    Args:
        advance: called with the number of sessions of each block that is done.
    """
    # A stream of its own: the shard does not depend on who draws it, or when.
    rng = np.random.default_rng([world.config.seed, 6, SPLITS.index(part.split), part.number])
    hours = draw_times(rng, part.split, part.first, part.last, part.rows)
    name = f"part-{part.number:05d}.parquet"
    rows, truth, counts = [], [], []
    for start in range(0, len(hours), BLOCK):
        block = hours[start : start + BLOCK]
        tables = draw_block(world, rng, block, part, first_id=part.before + part.first + start)
        rows.append(tables[0])
        truth.append(tables[1])
        counts.append(tables[2])
        advance(len(block))
    for folder, parts in ((directory / part.split, rows), (directory / "truth" / part.split, truth)):
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables(parts), folder / name, compression="zstd", compression_level=1)
    return {key: sum(count[key] for count in counts) for key in counts[0]}


def draw_block(
    world: World, rng: np.random.Generator, hours: np.ndarray, part: Part, first_id: int
) -> tuple[pa.Table, pa.Table, Counts]:
    """(sessions, truth, counts) of consecutive sessions at ``hours`` [n]."""
    session = world.draw(rng, hours, launched=part.launched)
    clicks = world.click(rng, session, launched=part.launched)
    intents = pa.array(world.base.catalog.ids)
    session_id, user_id = ids(first_id, len(hours), world.config.seed)
    columns = {"session_id": session_id, "user_id": user_id, **session_columns(session, hours, intents)}
    columns["candidates"] = pa.ListArray.from_arrays(pa.array(np.zeros(len(hours) + 1, np.int32)), intents.slice(0, 0))
    # Annotators correct the last week's clicks to what users came for; before that the log has the clicks themselves.
    clicked = session.relevant if part.split == "test" else clicks.clicked
    columns["clicked"] = intent_lists(clicked, intents)
    columns["click_position"] = pa.array(clicks.position.astype(np.int8), mask=clicks.position == 0)
    assert {*COLUMNS, *FEATURE_COLUMNS} <= set(columns)
    names = pa.array([problem.key for problem in PROBLEMS])
    truth = {"session_id": session_id, **truth_columns(session, clicks, intents, names)}
    return pa.table(columns), pa.table(truth), _counts(world, session, clicks)


def _counts(world: World, session: Session, clicks: Clicks) -> Counts:
    relevant = session.relevant
    cold = world.base.cold[relevant] & (relevant >= 0)
    return {
        "sessions": len(relevant),
        "noise_clicks": int(clicks.noise.sum()),
        "relevant": int((relevant >= 0).sum()),
        "multi_relevant": int((relevant[:, 1] >= 0).sum()),
        "cold_sessions": int(cold.any(axis=1).sum()),
        "with_order": int((session.state.codes["order_status"] > 0).sum()),
        "with_contacts": int((np.diff(session.contacts.offsets) > 0).sum()),
        "expected_recall_at_3": float(session.truth.probabilities[:, :3].sum(dtype=np.float64)),
        "rest_mass": float(session.truth.rest.sum()),
    }
