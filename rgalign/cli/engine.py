"""`rgalign engine …`: our own engine for the reasoner."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from rgalign.cli.shared import ConfigFile, DatasetDir, Out, Overrides, console, print_values

app = typer.Typer(help="The reasoner's own engine: build, verify, compare, export.", no_args_is_help=True)


@app.command("build")
def engine_build(
    model: Annotated[str, typer.Argument(help="smollm2, a directory, a .gguf file or a hub name.")],
    out: Out,
    dtype: Annotated[
        str, typer.Option(help="int8, int8a12 (activations of 12 bits), fp32, bf16 (GPU only); with --for int8, bf16.")
    ] = "int8",
    for_: Annotated[
        Literal["rgalign", "vllm", "tensorrt-llm"], typer.Option("--for", help="The engine that will read it.")
    ] = "rgalign",
    calibrate: Annotated[
        Path | None, typer.Option(help="Dataset whose prompts say where outliers are, and how large the errors.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="With --calibrate: SmoothQuant's; 0 moves nothing.")] = 0.5,
    prompts: Annotated[int, typer.Option(help="With --calibrate: how many of them.")] = 32,
    template: Annotated[str, typer.Option(help="With --calibrate: the prompts' template.")] = "paper",
) -> None:
    """Write the engine of a model: fused weights, quantised, with the hash of every file and a report of errors.

    With --for, a checkpoint that another engine reads. Example:

    rgalign engine build smollm2 -o engine --dtype int8 --calibrate data/boston
    """
    from rgalign.reasoner.engine.build import build_engine
    from rgalign.reasoner.quantized_checkpoint import write_checkpoint
    from rgalign.training.engine_calibration import calibration_of

    calibration = None
    if calibrate is not None:
        calibration = calibration_of(calibrate, model, template=template, count=prompts, alpha=alpha)
    if for_ != "rgalign":
        info = write_checkpoint(model, out, for_, dtype, calibration)
        print_values({"checkpoint": out, "for": for_, "dtype": info["dtype"], "model": info["model"][:12]})
        return
    manifest = build_engine(model, out, dtype, calibration)
    print_values({"engine": out, "dtype": manifest.dtype, "model": manifest.model[:12], "hash": manifest.hash[:12]})


@app.command("verify")
def engine_verify(engine: Annotated[Path, typer.Argument(help="Engine directory.")]) -> None:
    """Compare the hash of every file with the manifest; exit code 2 says what is wrong."""
    from rgalign.reasoner.engine.artifact import read_manifest

    manifest = read_manifest(engine)
    print_values({"engine": engine, "dtype": manifest.dtype, "model": manifest.model[:12], "hash": manifest.hash[:12]})


@app.command("parity")
def engine_parity(
    model: Annotated[str, typer.Argument(help="smollm2, a directory, a .gguf file or a hub name.")],
    dataset: DatasetDir,
    out: Out,
    ranker: Annotated[Path | None, typer.Option(help="Training run whose recommendations are compared.")] = None,
    latents: Annotated[
        Path | None, typer.Option(help="The run's latent queries, where they lie elsewhere now.")
    ] = None,
    reuse: Annotated[list[Path] | None, typer.Option(help="More stores to take finished vectors from.")] = None,
    with_: Annotated[
        list[str] | None, typer.Option("--with", help="BACKEND:DTYPE[=DIRECTORY] to compare too. Repeatable.")
    ] = None,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Compare every engine with transformers in fp32: vectors, recommendations, metrics. Exit code 1: beyond a limit.

    An interrupted run goes on where it was. Example:

    rgalign engine parity smollm2 data/boston --ranker runs/qe_rec -o parity --with engine:int8=engines/calibrated
    """
    from rgalign.config import load_config
    from rgalign.training.parity.config import Candidate, ParityConfig
    from rgalign.training.parity.console import describe_parity
    from rgalign.training.parity.parity import REPORT, Sources, check_parity

    settings = load_config(ParityConfig, config, set_ or ())
    extra = [Candidate.parse(text) for text in with_ or ()]
    report = check_parity(model, Sources(dataset, ranker, latents, tuple(reuse or ())), out, settings, extra)
    console.print(describe_parity(report))
    console.print(f"report: {out / REPORT}")
    if not report["passed"]:
        raise typer.Exit(1)


@app.command("export")
def engine_export(
    run: Annotated[Path, typer.Argument(help="A training run.")],
    out: Out,
    latents: Annotated[
        Path | None, typer.Option(help="The run's latent queries, where they lie elsewhere now.")
    ] = None,
    dataset: Annotated[Path | None, typer.Option(help="The run's dataset, where it lies elsewhere now.")] = None,
) -> None:
    """Write reasoner and query tower as a Sentence-Transformers directory, for vLLM, TEI and SGLang.

    Example: rgalign engine export runs/qe_rec -o exported
    """
    from rgalign.training.engine_export import export_run

    made = export_run(run, out, latents=latents, dataset=dataset)
    same = "no sessions" if made.same_tokens is None else f"{100 * made.same_tokens:.1f} %"
    print_values({"exported": out, "reasoner": made.info["reasoner"][:12], "same token ids as text": same})
