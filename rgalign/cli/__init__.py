"""The command line: `rgalign …`. Each command reads its arguments, calls one function of the library and prints.

The only package that imports training and bench, inside the commands, so that `rgalign --help` is quick.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import typer
from rich.console import Console

from rgalign.cli import bench, bundle, data, engine, index, plan, play, rank, serve, tables, train
from rgalign.errors import RgalignError
from rgalign.room_on_disk import room_on_disk

HELP = """Predict the service intent a user came for, before they type.

[bold]From logs to ranked intents[/bold]

  1. a dataset:  rgalign data simulate | import boston311 | import arranged | infer-schema and import
     table for your own logs; then data check
  2. the reasoner's latent query of every session:  rgalign embed DATASET -o LATENTS
  3. the ranker:  rgalign train stage1 -o RUN --set dataset=DATASET --set model.model=qe_rec --set latents=LATENTS
  4. how good it is, with intervals:  rgalign evaluate RUN... -o REPORT   (or all of it: rgalign experiment)
  5. what it recommends:  rgalign recommend RUN --session ID
"""

app = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False)
app.add_typer(data.app, name="data")
app.add_typer(rank.app)
app.add_typer(train.app, name="train")
app.add_typer(index.app, name="index")
app.add_typer(engine.app, name="engine")
app.add_typer(bundle.app, name="bundle")
app.add_typer(bench.app, name="bench")
app.add_typer(tables.app)
app.add_typer(serve.app)
app.add_typer(play.app)
app.add_typer(plan.app, name="plan")


def main() -> None:
    # Before torch starts its threads: waiting ones sleep instead of spinning, which on a shared machine, where one
    # thread of two may be without a core, made embedding four times slower than with a single thread.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports its use otherwise
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        with room_on_disk(Path.cwd()):
            app()
    except RgalignError as error:
        Console(stderr=True).print(
            f"[bold red]{type(error).__name__}[/]: ", error, sep="", highlight=False, markup=True
        )
        sys.exit(2)
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped; the same command goes on where it can")
        sys.exit(130)
