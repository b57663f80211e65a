"""`rgalign bundle …`: build, verify and look into bundles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rgalign.cli.shared import Out, console, print_values

if TYPE_CHECKING:
    from rgalign.bundle import Manifest

app = typer.Typer(help="Bundles, which a server loads: build, verify, inspect.", no_args_is_help=True)

BundleDir = Annotated[Path, typer.Argument(help="Bundle directory.", show_default=False)]


@app.command("build")
def bundle_build(
    run: Annotated[Path, typer.Argument(help="A training run.")],
    out: Out,
    engine_dtype: Annotated[
        Literal["int8a12", "fp32", "int8"] | None,
        typer.Option(help="Of the engine; by default the one that made the latent queries, else int8a12."),
    ] = None,
    precision: Annotated[
        Literal["float32", "float16", "bfloat16", "int8"], typer.Option(help="How the index's vectors are stored.")
    ] = "float32",
    show_precision: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Validation precision below which nothing is shown.")
    ] = 0.1,
) -> None:
    """Write all that a server needs of a training run into one directory.

    Example: rgalign bundle build runs/qe_rec -o bundle --engine-dtype int8a12
    """
    from rgalign.training.bundle_build import build_bundle

    manifest = build_bundle(run, out, engine_dtype=engine_dtype, precision=precision, show_precision=show_precision)
    _print_manifest(manifest, out)


@app.command("verify")
def bundle_verify(bundle: BundleDir) -> None:
    """Check every byte, shape and hash of a bundle, engine and vectors included; exit code 2 says what is wrong."""
    from rgalign.bundle import read_bundle

    _print_manifest(read_bundle(bundle).manifest, bundle)


@app.command("inspect")
def bundle_inspect(bundle: BundleDir) -> None:
    """Print the manifest and the files; reads no file but the manifest."""
    from rgalign.bundle import read_manifest

    manifest = read_manifest(bundle)
    _print_manifest(manifest, bundle)
    for name, file in manifest.files.items():
        console.print(f"  {file.size:>12,}  {file.sha256[:12]}  {name}", highlight=False, markup=False)


def _print_manifest(manifest: Manifest, path: Path) -> None:
    values = {
        "bundle": path,
        "hash": manifest.hash[:12],
        "ranker": manifest.ranker[:12],
        "schema": manifest.schema_hash[:12],
        "catalogue": manifest.catalogue[:12],
        "dimensions": manifest.dim,
        "omega": f"{manifest.omega:.3f}",
        "show from probability": f"{(manifest.full or manifest.user_only).threshold:.3f}",
        "bytes": f"{sum(file.size for file in manifest.files.values()):,}",
    }
    if manifest.reasoner is not None:
        part = manifest.reasoner
        values |= {
            "engine": f"{part.dtype} {part.engine[:12]}",
            "pooling": part.pooling,
            "template": part.template.name,
        }
    print_values(values)
