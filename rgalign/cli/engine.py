"""`rgalign engine …`: our own engine for the reasoner."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rgalign.cli.shared import Out, print_values

app = typer.Typer(help="The reasoner's own engine: build, verify.", no_args_is_help=True)


@app.command("build")
def engine_build(
    model: Annotated[str, typer.Argument(help="smollm2, a directory, a .gguf file or a hub name.")],
    out: Out,
    dtype: Annotated[str, typer.Option(help="int8, int8a12 (activations of 12 bits) or fp32.")] = "int8",
    calibrate: Annotated[
        Path | None, typer.Option(help="Dataset whose prompts say where outliers are, and how large the errors.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="With --calibrate: SmoothQuant's; 0 moves nothing.")] = 0.5,
    prompts: Annotated[int, typer.Option(help="With --calibrate: how many of them.")] = 32,
    template: Annotated[str, typer.Option(help="With --calibrate: the prompts' template.")] = "paper",
) -> None:
    """Write the engine of a model: fused weights, quantised, with the hash of every file and a report of errors.

    Example: rgalign engine build smollm2 -o engine --dtype int8 --calibrate data/boston
    """
    from rgalign.reasoner.engine.build import build_engine
    from rgalign.training.engine_calibration import calibration_of

    calibration = None
    if calibrate is not None:
        calibration = calibration_of(calibrate, model, template=template, count=prompts, alpha=alpha)
    manifest = build_engine(model, out, dtype, calibration)
    print_values({"engine": out, "dtype": manifest.dtype, "model": manifest.model[:12], "hash": manifest.hash[:12]})


@app.command("verify")
def engine_verify(engine: Annotated[Path, typer.Argument(help="Engine directory.")]) -> None:
    """Compare the hash of every file with the manifest; exit code 2 says what is wrong."""
    from rgalign.reasoner.engine.artifact import read_manifest

    manifest = read_manifest(engine)
    print_values({"engine": engine, "dtype": manifest.dtype, "model": manifest.model[:12], "hash": manifest.hash[:12]})
