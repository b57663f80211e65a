"""`rgalign data …`: make, import, describe and check dataset directories."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rgalign.cli.shared import ConfigFile, DatasetDir, Out, Overrides, console, print_values

ViewName = Literal["residents", "accounts", "all"]

app = typer.Typer(help="Make, import, describe and check dataset directories.", no_args_is_help=True)
import_app = typer.Typer(help="Import real logs.", no_args_is_help=True)
app.add_typer(import_app, name="import")


@app.command("simulate")
def data_simulate(
    out: Out, config: ConfigFile = None, set_: Overrides = None, workers: Annotated[int | None, typer.Option()] = None
) -> None:
    """Simulate an e-commerce chatbot: 8 regions, 89 features, five weeks, with every session's true probabilities.

    Example: rgalign data simulate -o sim --set num_sessions=100000 --set seed=1
    """
    from rgalign.config import load_config
    from rgalign.data.simulator import SimulatorConfig, simulate

    print_values(simulate(load_config(SimulatorConfig, config, set_ or ()), out, workers=workers, progress=True))


@import_app.command("boston311")
def import_boston(
    source: Annotated[str, typer.Argument(help="The city's CSV (or .csv.gz), or an https URL of it.")],
    out: Out,
    view: ViewName = "residents",
    max_train: Annotated[int | None, typer.Option(help="Keep the most recent so many training sessions.")] = None,
) -> None:
    """Boston's public 311 requests: sessions with the place's history and nothing from the future."""
    from rgalign.data.sources.boston311 import import_boston311

    _print_dataset(import_boston311(source, out, view=view, max_train=max_train))


@import_app.command("arranged")
def import_arranged_command(
    source: Annotated[Path, typer.Argument(help="Directory with samples.csv.gz and intents.csv.")],
    out: Out,
    view: ViewName = "residents",
    split: Annotated[Literal["readme", "wide"], typer.Option(help="readme: last week; wide: weeks 18+ test.")] = "wide",
    max_train: Annotated[int | None, typer.Option(help="Keep the most recent so many training sessions.")] = None,
) -> None:
    """A service line's log arranged as one CSV row a contact."""
    from rgalign.data.sources.arranged import import_arranged

    _print_dataset(import_arranged(source, out, view=view, split=split, max_train=max_train))


@import_app.command("table")
def import_table(
    file: Annotated[Path, typer.Argument(help="Your sessions: parquet, CSV or .csv.gz.")],
    schema: Annotated[Path, typer.Option(help="schema.yaml (`rgalign data infer-schema` proposes one).")],
    intents: Annotated[Path, typer.Option(help="Your intents, parquet or CSV: id, title, description, ...")],
    out: Out,
    delimiter: Annotated[str, typer.Option(help="Between the items of a list that is written as text.")] = "|",
    valid_from: Annotated[str | None, typer.Option(help="ISO time at which validation begins.")] = None,
    test_from: Annotated[str | None, typer.Option(help="ISO time at which test begins.")] = None,
    quarantine: Annotated[Path | None, typer.Option(help="Parquet file for rows without an id or a time.")] = None,
) -> None:
    """Your own sessions in one file, one row a session with columns session_id, ts, clicked and the schema's.

    Example: rgalign data import table logs.csv --schema schema.yaml --intents intents.csv -o data/mine
    """
    from rgalign.data.sources.session_table import import_session_table

    times = {"valid_from": valid_from, "test_from": test_from}
    _print_dataset(
        import_session_table(file, schema, intents, out, delimiter=delimiter, quarantine=quarantine, **times)
    )
    console.print(f"next: rgalign data check {out}")


@app.command("sample")
def data_sample(
    dataset: DatasetDir,
    out: Out,
    train: Annotated[int | None, typer.Option(min=1, help="Training sessions to keep; default: all.")] = None,
    valid: Annotated[int | None, typer.Option(min=1, help="Validation sessions to keep.")] = None,
    test: Annotated[int | None, typer.Option(min=1, help="Test sessions to keep.")] = None,
    latest: Annotated[bool, typer.Option("--latest", help="The last training sessions, not spaced ones.")] = False,
) -> None:
    """A smaller dataset out of a larger one, for a trial run or an experiment on part of the sessions.

    Example: rgalign data sample sim -o sim10k --train 10000 --test 2000
    """
    from rgalign.data.dataset import Dataset
    from rgalign.data.sample import sample_dataset

    sizes = {split: size for split, size in (("train", train), ("valid", valid), ("test", test)) if size is not None}
    _print_dataset(sample_dataset(Dataset.open(dataset), out, sizes, train="latest" if latest else "spaced"))


@app.command("infer-schema")
def data_infer_schema(
    file: Annotated[Path, typer.Argument(help="Your own parquet or CSV file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="schema.yaml to write, for you to edit.")],
) -> None:
    """Propose a schema.yaml: types, vocabularies, sequences, coupled groups, likely personal data."""
    from rgalign.data.infer import write_proposal

    console.print(write_proposal(file, out))


@app.command("check")
def data_check(
    dataset: DatasetDir,
    quarantine: Annotated[Path | None, typer.Option(help="Move unusable rows to this parquet file.")] = None,
) -> None:
    """Report schema violations with counts and examples.

    Exit code: 0 usable (there may be warnings), 1 rows to quarantine, 2 the dataset cannot be used.
    """
    from rgalign.data.check import check_dataset

    report = check_dataset(dataset, quarantine)
    console.print(report.describe())
    raise typer.Exit(report.exit_code)


def _print_dataset(dataset: Any) -> None:
    sizes = {split: dataset.num_rows(split) for split in ("train", "valid", "test")}
    print_values({"dataset": dataset.path, "intents": len(dataset.catalog), **sizes})
