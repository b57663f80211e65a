"""`rgalign index …`: build, verify, compare and extend intent indexes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rgalign.cli.shared import Out, console, print_values

app = typer.Typer(help="Intent indexes: build, verify, compare, extend.", no_args_is_help=True)


@app.command("build")
def index_build(
    run: Annotated[Path, typer.Argument(help="A training run.")],
    out: Out,
    precision: Annotated[
        Literal["float32", "float16", "bfloat16", "int8"], typer.Option(help="How the vectors are stored.")
    ] = "float32",
) -> None:
    """Write the index of a trained ranker: the unit vector, id and title of every intent.

    Example: rgalign index build runs/a -o index --precision int8
    """
    from rgalign.index import write_index
    from rgalign.training.index_build import index_of
    from rgalign.training.ranker_files import load_ranker

    index = index_of(load_ranker(run), precision)
    write_index(index, out)
    _print_index(index, out)


@app.command("verify")
def index_verify(
    index: Annotated[Path, typer.Argument(help="Index directory.")],
    run: Annotated[Path | None, typer.Option(help="The training run that must have made its vectors.")] = None,
) -> None:
    """Check every byte, every vector and every id of an index; exit code 2 says what is wrong."""
    from rgalign.index import read_index
    from rgalign.training.index_build import index_provenance
    from rgalign.training.ranker_files import load_ranker

    required = {}
    if run is not None:
        made_by = index_provenance(load_ranker(run))
        required = {name: made_by[name] for name in ("intent_tower", "text_encoder")}
    _print_index(read_index(index, require=required), index)


@app.command("diff")
def index_diff(
    former: Annotated[Path, typer.Argument(help="Index directory.")],
    index: Annotated[Path, typer.Argument(help="Index directory to compare with it.")],
    same: Annotated[float | None, typer.Option(help="Cosine from which on a vector has not moved.")] = None,
) -> None:
    """Intents added, removed, retitled and moved between two indexes. Exit code 1 if there are any."""
    from rgalign.index import compare, read_index
    from rgalign.index.changes import SAME_DIRECTION

    before, after = read_index(former), read_index(index)
    changes = compare(before, after, same_direction=SAME_DIRECTION if same is None else same)
    for name, pair in changes.provenance.items():
        console.print(f"{name}: {pair[0][:12]} -> {pair[1][:12]}", highlight=False)
    for intent_id in changes.added:
        console.print(f"+ {intent_id}  {after.titles[after.rows[intent_id]]}", highlight=False, markup=False)
    for intent_id in changes.removed:
        console.print(f"- {intent_id}  {before.titles[before.rows[intent_id]]}", highlight=False, markup=False)
    for intent_id, titles in changes.retitled.items():
        console.print(f"~ {intent_id}  {titles[0]} -> {titles[1]}", highlight=False, markup=False)
    for intent_id, cosine in changes.moved.items():
        console.print(f"> {intent_id}  cosine {cosine:.6f}", highlight=False, markup=False)
    raise typer.Exit(1 if changes else 0)


@app.command("add")
def index_add(
    index: Annotated[Path, typer.Argument(help="Index directory.")],
    intents: Annotated[Path, typer.Option(help="The further intents, parquet or CSV: id, title, description, ...")],
    run: Annotated[Path, typer.Option(help="The training run that made the index.")],
    out: Out,
) -> None:
    """Add intents by their texts alone, without training: a new knowledge-base entry can be ranked at once.

    Example: rgalign index add index --intents new.csv --run runs/a -o index-2
    """
    from rgalign.data.sources.session_table import read_catalog
    from rgalign.index import read_index, write_index
    from rgalign.training.index_build import add_by_text

    extended = add_by_text(read_index(index), run, read_catalog(intents))
    write_index(extended, out)
    _print_index(extended, out)


def _print_index(index: Any, path: Path) -> None:
    stored = str(index.vectors.dtype).removeprefix("torch.")
    hashes = {name: value[:12] for name, value in index.provenance.items()}
    print_values({"index": path, "intents": len(index), "dimensions": index.dim, "precision": stored, **hashes})
