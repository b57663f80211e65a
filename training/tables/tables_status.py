"""What a directory of tables has done and what comes next, read from its folders alone."""

from __future__ import annotations

from pathlib import Path

from rgalign.config import load_config
from rgalign.errors import ProvenanceError, RewardError
from rgalign.training.loop.readiness import foreseen
from rgalign.training.loop.status import StepStatus, step_status
from rgalign.training.tables.run_tables import NUMBERS, config_name, is_tables, table_steps
from rgalign.training.tables.shared_steps import Workshop
from rgalign.training.tables.table5 import table5_steps
from rgalign.training.tables.table5_config import Table5Config
from rgalign.training.tables.table_step import table_name
from rgalign.training.tables.tables_config import TablesConfig


def tables_status(root: Path) -> list[StepStatus]:
    """Every step of every table that was begun there; a shared step once, as the last table wants it.

    As :func:`rgalign.training.loop.status.loop_status`, it does not hash datasets and models again.

    Raises:
        ProvenanceError: no tables' directory.
    """
    root = Path(root).resolve()
    if not is_tables(root):
        required = "a directory of `rgalign tables`"
        raise ProvenanceError(where=str(root), required=required, received="no table<number>.yaml")
    found: dict[str, StepStatus] = {}
    for number in NUMBERS:
        file = root / config_name(number)
        if not file.is_file():
            continue
        if number == 5:
            steps = table5_steps(load_config(Table5Config, file), root)
        else:
            steps = table_steps(number, Workshop(load_config(TablesConfig, file), root))
        try:
            found |= {step.name: step_status(step, state, root) for step, state in foreseen(steps, root)}
        except RewardError:  # an empty selection: what follows it cannot be known, but the table is not done
            found[table_name(number)] = StepStatus(table_name(number), "to do", 0.0, 0)
    return list(found.values())
