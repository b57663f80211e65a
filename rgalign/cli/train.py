"""`rgalign train …`: rankers, intent text vectors, and the alignment loop as one command or step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from rgalign.cli.shared import ConfigFile, DatasetDir, Out, Overrides, console, print_values

app = typer.Typer(help="Train rankers and intent text vectors; align the reasoner to the ranker.", no_args_is_help=True)


@app.command("stage1")
def train_stage1_command(
    out: Out,
    config: ConfigFile = None,
    set_: Overrides = None,
    restart: Annotated[bool, typer.Option(help="Throw an earlier run in this directory away.")] = False,
) -> None:
    """Train a ranker. Stopped at any point and started again, it goes on as if nothing had happened.

    Example: rgalign train stage1 -o runs/a --set dataset=data/boston --set model.model=baseline
    """
    from rgalign.config import load_config
    from rgalign.training.stage1 import Stage1Config, train_stage1

    print_values(train_stage1(load_config(Stage1Config, config, set_ or ()), out, restart=restart))


@app.command("hllm")
def train_hllm(dataset: DatasetDir, out: Out, config: ConfigFile = None, set_: Overrides = None) -> None:
    """Pre-train the intent text encoder on the training weeks, then write every intent's text vector.

    Example: rgalign train hllm data/boston -o semantic --set model=smollm2
    """
    from rgalign.config import load_config
    from rgalign.data.dataset import Dataset
    from rgalign.training.hllm import HLLMConfig, build_semantic

    console.print(build_semantic(Dataset.open(dataset), load_config(HLLMConfig, config, set_ or ()), out))


@app.command("generate")
def train_generate(
    out: Out,
    config: ConfigFile = None,
    set_: Overrides = None,
    restart: Annotated[bool, typer.Option(help="Judge again and ask again what failed; answers are kept.")] = False,
) -> None:
    """Ask teachers what users came to ask: candidate queries. Interrupted or out of quota, the same command goes on.

    Example: rgalign train generate -o runs/gen --set dataset=data/boston --set latents=latents
    """
    from rgalign.config import load_config
    from rgalign.training.teachers.generate import generate
    from rgalign.training.teachers.generate_config import GenerateConfig

    metrics = generate(load_config(GenerateConfig, config, set_ or ()), out, restart=restart)
    print_values({name: metrics[name] for name in ("sessions", "sessions_with_a_candidate", "cost")})
    for name, teacher in metrics["teachers"].items():
        suspect = "; names clicked titles it cannot know: see metrics.json" if teacher["leak"]["suspect"] else ""
        print_values({name: f"{teacher['kept']} of {teacher['asked']} usable{suspect}"})


@app.command("reward")
def train_reward(
    out: Out,
    config: ConfigFile = None,
    set_: Overrides = None,
    restart: Annotated[bool, typer.Option(help="Begin afresh; latent queries and fold rankers are kept.")] = False,
) -> None:
    """Judge candidate queries by the ranking they lead to: cross-fitted rankers, NDCG of the clicked intents.

    Example: rgalign train reward -o runs/reward --set candidates=runs/gen --set ranker=runs/qe_rec
    """
    from rgalign.config import load_config
    from rgalign.training.reward.reward import reward
    from rgalign.training.reward.reward_config import RewardConfig

    metrics = reward(load_config(RewardConfig, config, set_ or ()), out, restart=restart)
    names = ("placement", "sessions", "judged", "ties", "winners", "mean_reward", "tokens")
    print_values({name: metrics[name] for name in names})


@app.command("select")
def train_select(out: Out, config: ConfigFile = None, set_: Overrides = None) -> None:
    """Best-of-N: the chosen and the rejected queries of each session, by strategy V1 to V4.

    Example: rgalign train select -o runs/v2 --set rewards=runs/reward --set strategy=V2
    """
    from rgalign.config import load_config
    from rgalign.training.selection.preferences import select
    from rgalign.training.selection.select_config import SelectConfig

    summary = select(load_config(SelectConfig, config, set_ or ()), out)
    names = ("strategy", "sessions", "kept", "dropped", "chosen_by_teacher", "mean_chosen_reward", "pairs")
    print_values({name: summary[name] for name in names})


@app.command("sft")
def train_sft(
    out: Out,
    config: ConfigFile = None,
    set_: Overrides = None,
    restart: Annotated[bool, typer.Option(help="Throw an earlier run in this directory away.")] = False,
) -> None:
    """RG-SFT: the reasoner learns to write the chosen queries. Presets: paper, single_gpu_lora, small_cpu.

    Example: rgalign train sft -o runs/sft --set preset=small_cpu --set selection=runs/v2 --set dataset=data/boston
    --set latents=latents
    """
    _align("sft", out, config, set_, restart)


@app.command("contrast")
def train_contrast(
    out: Out,
    config: ConfigFile = None,
    set_: Overrides = None,
    restart: Annotated[bool, typer.Option(help="Throw an earlier run in this directory away.")] = False,
) -> None:
    """RG-CL: the latent query moves to the embedding of the chosen query. Start from an SFT run with init=RUN.

    Example: rgalign train contrast -o runs/cl --config align.yaml --set init=runs/sft
    """
    _align("contrast", out, config, set_, restart)


@app.command("dpo")
def train_dpo(
    out: Out,
    config: ConfigFile = None,
    set_: Overrides = None,
    restart: Annotated[bool, typer.Option(help="Throw an earlier run in this directory away.")] = False,
) -> None:
    """RG-DPO: chosen queries over strictly worse ones; S-DPO with dpo.loss=softmax. Start from an SFT run.

    Example: rgalign train dpo -o runs/dpo --config align.yaml --set init=runs/sft
    """
    _align("dpo", out, config, set_, restart)


@app.command("reembed")
def train_reembed(
    run: Annotated[Path, typer.Argument(help="A finished run of train sft, contrast or dpo.")],
    out: Out,
    dataset: Annotated[Path | None, typer.Option(help="Default: the run's.")] = None,
) -> None:
    """Latent queries of an aligned reasoner; after tuning: upper only the trained layers are computed again.

    Example: rgalign train reembed runs/cl -o latents-cl
    """
    from rgalign.training.alignment.reembed import reembed

    report = reembed(run, out, dataset=dataset)
    print_values({"sessions": report.sessions, "distinct prompts computed": report.distinct_prompts})


@app.command("all")
def train_all(out: Out, config: ConfigFile = None, set_: Overrides = None) -> None:
    """The closed loop: embed, rankers, teachers, reward, selection, alignment, recalibration, control, evaluation.

    Stopped at any point and started again, it goes on; a changed key does anew what depends on it. Example:

    rgalign train all --config loop.yaml -o RUN
    """
    from rich.markdown import Markdown

    from rgalign.config import load_config
    from rgalign.training.loop.graph import report_path
    from rgalign.training.loop.loop import run_loop
    from rgalign.training.loop.loop_config import LoopConfig

    def announce(step: str, state: str) -> None:
        console.rule(f"{step}: {state}")

    run_loop(load_config(LoopConfig, config, set_ or ()), out, announce=announce)
    report = report_path(out)
    console.print(Markdown(report.read_text(encoding="utf-8")))
    console.print(f"report: {report}")


@app.command("status")
def train_status(
    run: Annotated[Path, typer.Argument(help="A run of `train all`, or of `rgalign tables`.", show_default=False)],
) -> None:
    """The steps of a closed loop or of tables: state, time, size on disk, and what comes next."""
    from rgalign.training.loop.status import loop_status, status_table
    from rgalign.training.tables.run_tables import is_tables
    from rgalign.training.tables.tables_status import tables_status

    console.print(status_table(tables_status(run) if is_tables(run) else loop_status(run)))


def _align(
    objective: Literal["sft", "contrast", "dpo"], out: Path, config: Path | None, set_: list[str] | None, restart: bool
) -> None:
    from rgalign.config import load_config
    from rgalign.training.alignment.align import align
    from rgalign.training.alignment.alignment_config import AlignmentConfig

    metrics = align(objective, load_config(AlignmentConfig, config, set_ or ()), out, restart=restart)
    print_values({name: metrics[name] for name in ("sessions", "held_out_sessions", "steps", "before", "after")})
    console.print(f"model: {out / 'model'}")
