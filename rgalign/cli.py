"""The command line: `rgalign …`. Each command reads its arguments, calls one function of the library and prints.

The only module of the package that imports training and bench, inside the commands, so that `rgalign --help` is quick.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from rgalign.errors import RgalignError

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
data_app = typer.Typer(help="Make, import, describe and check dataset directories.", no_args_is_help=True)
import_app = typer.Typer(help="Import real logs.", no_args_is_help=True)
train_app = typer.Typer(help="Train rankers and intent text vectors.", no_args_is_help=True)
app.add_typer(data_app, name="data")
data_app.add_typer(import_app, name="import")
app.add_typer(train_app, name="train")
index_app = typer.Typer(help="Intent indexes: build, verify, compare, extend.", no_args_is_help=True)
app.add_typer(index_app, name="index")

console = Console()

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file; unknown keys are errors.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="key.subkey=value, over the file. Repeatable.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Directory to write.")]
DatasetDir = Annotated[Path, typer.Argument(help="Dataset directory.", show_default=False)]
ViewName = Literal["residents", "accounts", "all"]


@data_app.command("simulate")
def data_simulate(
    out: Out, config: ConfigFile = None, set_: Overrides = None, workers: Annotated[int | None, typer.Option()] = None
) -> None:
    """Simulate an e-commerce chatbot: 8 regions, 89 features, five weeks, with every session's true probabilities.

    Example: rgalign data simulate -o sim --set num_sessions=100000 --set seed=1
    """
    from rgalign.config import load_config
    from rgalign.data.simulator import SimulatorConfig, simulate

    _print_values(simulate(load_config(SimulatorConfig, config, set_ or ()), out, workers=workers, progress=True))


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


@data_app.command("sample")
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


@data_app.command("infer-schema")
def data_infer_schema(
    file: Annotated[Path, typer.Argument(help="Your own parquet or CSV file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="schema.yaml to write, for you to edit.")],
) -> None:
    """Propose a schema.yaml: types, vocabularies, sequences, coupled groups, likely personal data."""
    from rgalign.data.infer import write_proposal

    console.print(write_proposal(file, out))


@data_app.command("check")
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

    overrides = [*(set_ or ()), *([f"model={model}"] if model else [])]
    settings = load_config(EmbedConfig, config, overrides)
    opened = Dataset.open(dataset)
    if (control is None) != (like is None):
        raise ConfigError(where="embed", required="--control and --like together", received="one of them")
    if control is not None and like is not None:
        report = embed_control(opened, out, control, settings, like=like)
    else:
        report = embed_dataset(opened, out, settings)
    _print_values(
        {
            "sessions": report.sessions,
            "distinct prompts computed": report.distinct_prompts,
            "prompts/s": round(report.prompts_per_s, 1),
            "prompt tokens/s": round(report.tokens_per_s),
        }
    )


@train_app.command("stage1")
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

    _print_values(train_stage1(load_config(Stage1Config, config, set_ or ()), out, restart=restart))


@train_app.command("hllm")
def train_hllm(dataset: DatasetDir, out: Out, config: ConfigFile = None, set_: Overrides = None) -> None:
    """Pre-train the intent text encoder on the training weeks, then write every intent's text vector.

    Example: rgalign train hllm data/boston -o semantic --set model=smollm2
    """
    from rgalign.config import load_config
    from rgalign.data.dataset import Dataset
    from rgalign.training.hllm import HLLMConfig, build_semantic

    console.print(build_semantic(Dataset.open(dataset), load_config(HLLMConfig, config, set_ or ()), out))


@train_app.command("generate")
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
    _print_values({name: metrics[name] for name in ("sessions", "sessions_with_a_candidate", "cost")})
    for name, teacher in metrics["teachers"].items():
        suspect = "; names clicked titles it cannot know: see metrics.json" if teacher["leak"]["suspect"] else ""
        _print_values({name: f"{teacher['kept']} of {teacher['asked']} usable{suspect}"})


@train_app.command("reward")
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
    _print_values({name: metrics[name] for name in names})


@train_app.command("select")
def train_select(out: Out, config: ConfigFile = None, set_: Overrides = None) -> None:
    """Best-of-N: the chosen and the rejected queries of each session, by strategy V1 to V4.

    Example: rgalign train select -o runs/v2 --set rewards=runs/reward --set strategy=V2
    """
    from rgalign.config import load_config
    from rgalign.training.selection.preferences import select
    from rgalign.training.selection.select_config import SelectConfig

    summary = select(load_config(SelectConfig, config, set_ or ()), out)
    names = ("strategy", "sessions", "kept", "dropped", "chosen_by_teacher", "mean_chosen_reward", "pairs")
    _print_values({name: summary[name] for name in names})


@train_app.command("sft")
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


@train_app.command("contrast")
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


@train_app.command("dpo")
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


@train_app.command("reembed")
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
    _print_values({"sessions": report.sessions, "distinct prompts computed": report.distinct_prompts})


@train_app.command("all")
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


@train_app.command("status")
def train_status(
    run: Annotated[Path, typer.Argument(help="The run directory of `rgalign train all`.", show_default=False)],
) -> None:
    """The steps of a closed loop: state, time, size on disk, and what comes next."""
    from rgalign.training.loop.status import loop_status, status_table

    console.print(status_table(loop_status(run)))


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


@index_app.command("build")
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


@index_app.command("verify")
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


@index_app.command("diff")
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


@index_app.command("add")
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


@app.command("demo")
def demo(
    out: Annotated[Path, typer.Option("--out", "-o")] = Path("demo"),
    data: Annotated[Path | None, typer.Option(help="Boston's 311 CSV; default: the simulator.")] = None,
    minutes: Annotated[float, typer.Option(help="Time to fit the demo to.")] = 6.0,
) -> None:
    """The main job in a few minutes: sessions, latent queries, baseline and QE-Rec, report, recommendations."""
    from rgalign.training.demo import run_demo

    run_demo(out, data, minutes, console)


def _align(
    objective: Literal["sft", "contrast", "dpo"], out: Path, config: Path | None, set_: list[str] | None, restart: bool
) -> None:
    from rgalign.config import load_config
    from rgalign.training.alignment.align import align
    from rgalign.training.alignment.alignment_config import AlignmentConfig

    metrics = align(objective, load_config(AlignmentConfig, config, set_ or ()), out, restart=restart)
    _print_values({name: metrics[name] for name in ("sessions", "held_out_sessions", "steps", "before", "after")})
    console.print(f"model: {out / 'model'}")


def _print_values(values: dict[str, Any]) -> None:
    for name, value in values.items():
        console.print(f"{name}: {value}", highlight=False)


def _print_index(index: Any, path: Path) -> None:
    stored = str(index.vectors.dtype).removeprefix("torch.")
    hashes = {name: value[:12] for name, value in index.provenance.items()}
    _print_values({"index": path, "intents": len(index), "dimensions": index.dim, "precision": stored, **hashes})


def _print_dataset(dataset: Any) -> None:
    sizes = {split: dataset.num_rows(split) for split in ("train", "valid", "test")}
    _print_values({"dataset": dataset.path, "intents": len(dataset.catalog), **sizes})


def main() -> None:
    # Before torch starts its threads: waiting ones sleep instead of spinning, which on a shared machine, where one
    # thread of two may be without a core, made embedding four times slower than with a single thread.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        app()
    except RgalignError as error:
        Console(stderr=True).print(
            f"[bold red]{type(error).__name__}[/]: ", error, sep="", highlight=False, markup=True
        )
        sys.exit(2)
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped; the same command goes on where it can")
        sys.exit(130)


if __name__ == "__main__":
    main()
