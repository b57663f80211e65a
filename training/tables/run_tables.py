"""Tables 2 to 4 in one directory: every step that is not done yet, in order; tables share what they have in common.

    out/table2.yaml    the configuration that the table was last asked for with; likewise table3.yaml, table4.yaml
    out/<step>/...     see shared_steps.py and rgalign.training.loop.step
    out/table2/out/    the table

A kill at any point continues with the same command. A changed key, dataset or model does anew what reads it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState

from rgalign.config import dump_config
from rgalign.errors import ConfigError, ProvenanceError, RewardError
from rgalign.files import read_json
from rgalign.training.loop.graph import EMBED
from rgalign.training.loop.loop import Announce, OnLoopStep, step_inputs
from rgalign.training.loop.readiness import require_ready
from rgalign.training.loop.step import OUT, Step, StepFolder
from rgalign.training.tables.measure import measure_step
from rgalign.training.tables.row import TablePlan
from rgalign.training.tables.shared_steps import Workshop
from rgalign.training.tables.table2 import table2_plan, table2_steps
from rgalign.training.tables.table3 import table3_plan, table3_steps
from rgalign.training.tables.table4 import table4_plan, table4_steps
from rgalign.training.tables.table_step import JSON, Table, table_name, table_step
from rgalign.training.tables.tables_config import TablesConfig

MAKERS: dict[int, tuple[Callable[[Workshop], Iterator[Step]], Callable[[Workshop], TablePlan]]] = {
    2: (table2_steps, table2_plan),
    3: (table3_steps, table3_plan),
    4: (table4_steps, table4_plan),
}


NUMBERS = (*MAKERS, 5)


def table_steps(number: int, shop: Workshop) -> Iterator[Step]:
    """Every step of a table once, when its turn has come; complete each before asking for the next."""
    make_steps, make_plan = MAKERS[number]
    seen: set[str] = set()
    for step in make_steps(shop):
        if step.name not in seen:
            seen.add(step.name)
            yield step
    plan = make_plan(shop)
    yield from (measure_step(plan.number, row, shop.config, shop.root) for row in plan.rows if row.runs)
    yield table_step(plan, shop.config, shop.root)


def run_table(
    number: int,
    config: TablesConfig,
    out: Path,
    *,
    announce: Announce = lambda step, what: None,
    on_step: OnLoopStep | None = None,
    progress: bool = True,
) -> Table:
    """Makes a table, goes on with it, or returns a finished one.

    Args:
        number: 2, 3 or 4.
        announce: called with each step's name and ``done`` (skipped), ``to do``, ``interrupted`` or ``outdated``.
        on_step: called after each optimiser step of a step that trains, with its name and the steps taken.

    Returns:
        What ``out/table<number>/out/table.json`` holds.

    Raises:
        ConfigError: several processes.
        ProvenanceError: ``out`` holds something that is no tables' directory.
        RgalignError: from a step that cannot run, before any does, or from one that stops. The directory
            stays; the same command goes on once the cause is gone.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        required = "one process (a single alignment may be run by a launcher before, see docs/loop.md)"
        raise ConfigError(where="tables", required=required, received=f"WORLD_SIZE {os.environ['WORLD_SIZE']}")
    root = Path(out).resolve()
    require_tables(root)
    semantic = None if config.semantic is None else config.semantic.resolve()
    config = config.model_copy(update={"dataset": config.dataset.resolve(), "semantic": semantic})
    shop = Workshop(config, root, progress)
    with suppress(RewardError):  # a selection that was empty: only its step knows whether it still is
        require_ready(table_steps(number, shop), root)
    dump_config(config, root / config_name(number))
    run_steps(table_steps(number, shop), root, announce=announce, on_step=on_step)
    table: Table = read_json(root / table_name(number) / OUT / JSON)
    return table


def run_steps(steps: Iterator[Step], root: Path, *, announce: Announce, on_step: OnLoopStep | None = None) -> None:
    """Completes the steps in order."""
    outcomes: dict[str, Any] = {}
    for step in steps:
        folder = StepFolder(root / step.name)
        inputs = step_inputs(step, outcomes)
        state = folder.state(inputs)
        announce(step.name, state)
        if state != "done":
            # As in loop.py: accelerate keeps one setting for the life of the process, each step has its own.
            AcceleratorState._reset_state(reset_partial_state=True)
            folder.complete(step, inputs, None if on_step is None else _named(on_step, step.name))
        outcomes[step.name] = folder.outcome()


def config_name(number: int) -> str:
    return f"{table_name(number)}.yaml"


def is_tables(root: Path) -> bool:
    return any((root / config_name(number)).is_file() for number in NUMBERS)


def require_tables(root: Path) -> None:
    """Raises ProvenanceError: something else's directory."""
    names = {path.name for path in root.iterdir()} if root.exists() else set()
    strangers = any(name != EMBED and not name.startswith(".") for name in names)  # EMBED may have been put there
    if strangers and not is_tables(root):
        required = "an empty directory or one of this command's"
        raise ProvenanceError(where=str(root), required=required, received="a directory without table<number>.yaml")


def _named(on_step: OnLoopStep, name: str) -> Callable[[int], None]:
    return lambda taken: on_step(name, taken)
