"""Latent queries, evaluation and recommendation: the commands without a group."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from rgalign.cli.shared import ConfigFile, DatasetDir, Out, Overrides, console, print_values

app = typer.Typer()


@app.command("embed")
def embed(
    dataset: DatasetDir,
    out: Out,
    config: ConfigFile = None,
    set_: Overrides = None,
    model: Annotated[str | None, typer.Option(help="smollm2, a directory, a .gguf file or a hub name.")] = None,
    control: Annotated[
        Literal["random", "tfidf"] | None, typer.Option(help="Vectors of a control instead of the reasoner's.")
    ] = None,
    like: Annotated[Path | None, typer.Option(help="With --control: the reasoner's latent queries.")] = None,
    ray: Annotated[int, typer.Option(help="Compute with so many Ray actors (RAY_ADDRESS: on that cluster).")] = 0,
    ray_gpus: Annotated[float, typer.Option(help="With --ray: GPUs of each actor.")] = 0.0,
) -> None:
    """Compute the latent query of every session (equal prompts once; interrupted runs go on).

    Several datasets may share one directory of latent queries. Example:

    rgalign embed data/boston -o latents --model smollm2 --set template=prefix_cached
    """
    from rgalign.config import load_config
    from rgalign.data.dataset import Dataset
    from rgalign.errors import ConfigError
    from rgalign.training.controls import embed_control
    from rgalign.training.embed import EmbedConfig, embed_dataset
    from rgalign.training.ray_embedder import RayActors

    overrides = [*(set_ or ()), *([f"model={model}"] if model else [])]
    settings = load_config(EmbedConfig, config, overrides)
    opened = Dataset.open(dataset)
    if (control is None) != (like is None):
        raise ConfigError(where="embed", required="--control and --like together", received="one of them")
    if control is not None and like is not None:
        report = embed_control(opened, out, control, settings, like=like)
    else:
        actors = RayActors(ray, ray_gpus) if ray else None
        report = embed_dataset(opened, out, settings, actors=actors)
    print_values(
        {
            "sessions": report.sessions,
            "distinct prompts computed": report.distinct_prompts,
            "prompts/s": round(report.prompts_per_s, 1),
            "prompt tokens/s": round(report.tokens_per_s),
        }
    )


@app.command("evaluate")
def evaluate_command(
    runs: Annotated[list[str], typer.Argument(help="Training runs, each DIR or NAME=DIR; equal names are seeds.")],
    out: Out,
    baseline: Annotated[str | None, typer.Option(help="The model to compare with; default: the first.")] = None,
    dataset: Annotated[Path | None, typer.Option(help="Default: the first run's.")] = None,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Compare runs on the test sessions: paired intervals, slices, learning curves; report.html, .json and .md.

    Example: rgalign evaluate baseline=runs/a qe_rec=runs/b qe_rec=runs/c -o report
    """
    from rgalign.config import load_config
    from rgalign.data.dataset import Dataset
    from rgalign.training.evaluate import EvaluationConfig, evaluate
    from rgalign.training.experiment import run_config, score_run
    from rgalign.training.report import print_comparison

    named = [run.split("=", 1) if "=" in run else [Path(run).name, run] for run in runs]
    data = dataset or run_config(Path(named[0][1])).dataset
    scored = [score_run(Path(path), name, data) for name, path in named]
    settings = load_config(EvaluationConfig, config, set_ or ())
    report = evaluate(scored, Dataset.open(data), out, baseline or named[0][0], settings)
    print_comparison(report, console)
    console.print(f"report: {out / 'report.html'}")


@app.command("experiment")
def experiment(
    config: Annotated[Path, typer.Argument(help="YAML: dataset, arms, seeds, baseline.")],
    out: Out,
    set_: Overrides = None,
) -> None:
    """Train every arm with every seed and compare them. Finished runs are kept, so it can be stopped and extended."""
    from rgalign.config import load_config
    from rgalign.training.experiment import ExperimentConfig, run_experiment
    from rgalign.training.report import print_comparison

    report = run_experiment(load_config(ExperimentConfig, config, set_ or ()), out, announce=console.rule)
    print_comparison(report, console)
    console.print(f"report: {out / 'report.html'}")


@app.command("recommend")
def recommend_command(
    run: Annotated[Path, typer.Argument(help="A training run.")],
    session: Annotated[str, typer.Option(help="Id of a session of the dataset.")],
    dataset: Annotated[Path | None, typer.Option(help="Default: the run's.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many intents.")] = 5,
) -> None:
    """Recommend intents for one session: what the reasoner reads, the ranked intents, each score and its two parts."""
    from rgalign.data.dataset import Dataset
    from rgalign.training.experiment import run_config
    from rgalign.training.recommend import SessionRecommender, describe, find_session

    data = Dataset.open(dataset or run_config(run).dataset)
    console.print(describe(SessionRecommender(run).recommend(find_session(data, session), k)))


@app.command("demo")
def demo(
    out: Annotated[Path, typer.Option("--out", "-o")] = Path("demo"),
    data: Annotated[Path | None, typer.Option(help="Boston's 311 CSV; default: the simulator.")] = None,
    minutes: Annotated[float, typer.Option(help="Time to fit the demo to.")] = 13.0,
) -> None:
    """The whole closed loop in a quarter of an hour: rankers, aligned reasoner, its control, recommendations."""
    from rgalign.training.demo import run_demo

    run_demo(out, data, minutes, console)
