"""What a directory of tables has done and what comes next, read from its folders alone."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from rgalign.config import load_config
from rgalign.errors import ProvenanceError, RewardError
from rgalign.training.loop.status import StepStatus, _size, _state
from rgalign.training.loop.step import StepFolder
from rgalign.training.tables.run_tables import NUMBERS, config_name, is_tables, table_steps
from rgalign.training.tables.shared_steps import Workshop
from rgalign.training.tables.table5 import table5_steps
from rgalign.training.tables.table5_config import Table5Config
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
        with suppress(RewardError):  # an empty selection: no step of this table can follow
            for step in steps:
                folder = StepFolder(root / step.name)
                state = _state(step, folder, found, root)
                found[step.name] = StepStatus(step.name, state, folder.seconds, _size(folder.path))
    return list(found.values())
