"""`rgalign tables`: the paper's tables 2 to 5 on one's own data."""

from __future__ import annotations

from typing import Annotated

import typer

from rgalign.cli.shared import ConfigFile, Out, Overrides, console

app = typer.Typer()


@app.command("tables")
def tables(
    number: Annotated[int, typer.Argument(min=2, max=5, help="2 main, 3 pooling, 4 best-of-N, 5 online.")],
    out: Out,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Reproduce a table of the paper on your data, each cell with its interval. Stopped and started again, it goes on.

    Tables 2 to 4 of one directory share their steps; `rgalign train status OUT` shows them. Example:

    rgalign tables 2 --config bench/experiments/table2.yaml -o runs/tables
    """
    from rgalign.config import load_config

    def announce(step: str, state: str) -> None:
        console.rule(f"{step}: {state}")

    if number == 5:
        from rgalign.training.tables.online_markdown import print_online
        from rgalign.training.tables.table5 import run_table5
        from rgalign.training.tables.table5_config import Table5Config

        print_online(run_table5(load_config(Table5Config, config, set_ or ()), out, announce=announce), console)
    else:
        from rgalign.training.tables.run_tables import run_table
        from rgalign.training.tables.table_console import print_table
        from rgalign.training.tables.tables_config import TablesConfig

        print_table(run_table(number, load_config(TablesConfig, config, set_ or ()), out, announce=announce), console)
    console.print(f"written: {out / f'table{number}' / 'out'}")
