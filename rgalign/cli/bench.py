"""`rgalign bench …`: measure, compare, report; and `serve`, the gate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from rgalign.cli.bench_serve import bench_serve
from rgalign.cli.shared import console

app = typer.Typer(help="Benchmarks: suites, comparison of two runs, the report, the gate.", no_args_is_help=True)
app.command("serve")(bench_serve)


@app.command("list")
def bench_list() -> None:
    """The suites, what each is made of, and when it was last run."""
    from rgalign.bench.suites_table import describe_suites

    console.print(describe_suites())


@app.command("run")
def bench_run(
    suites: Annotated[list[str], typer.Argument(help="Names of suites (rgalign bench list), or all.")],
    quick: Annotated[bool, typer.Option("--quick", help="Tiny: does it run? Rows go to build/bench/quick/.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Every cell, with the engine's peers: hours.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Also what was measured from the same sources.")] = False,
) -> None:
    """Measure suites beside their baselines; rows are appended to bench/results/.

    What is done is not done again, so an interrupted run goes on. Exit code 1: a step failed.

    Example: rgalign bench run scoring batcher
    """
    from rgalign.bench.suites import run_suites
    from rgalign.errors import ConfigError

    if quick and full:
        raise ConfigError(where="bench run", required="--quick or --full or neither", received="both")
    effort: Literal["quick", "standard", "full"] = "quick" if quick else "full" if full else "standard"
    outcomes = run_suites(suites, effort, _tell, again=again)
    failed = [outcome.name for outcome in outcomes if outcome.error is not None]
    minutes = sum(outcome.seconds for outcome in outcomes) / 60
    done = len(outcomes) - len(failed)
    console.print(f"{done} of {len(outcomes)} steps done, {minutes:.1f} minutes", highlight=False)
    if failed:
        console.print(f"failed: {', '.join(failed)}", style="red", markup=False)
        raise typer.Exit(1)


def _tell(line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command("compare")
def bench_compare(
    a: Annotated[str, typer.Argument(help="File or directory of rows, or a commit that rows in bench/results have.")],
    b: Annotated[str, typer.Argument(help="The same, measured later.")],
    least: Annotated[float, typer.Option(min=0.0, help="The smallest change that is called one, as a share.")] = 0.03,
    everything: Annotated[bool, typer.Option("--all", help="Also cells without a difference.")] = False,
) -> None:
    """Say what B does faster or slower than A, beyond the noise. Exit code 1: something is slower.

    Example: rgalign bench compare 2a1c1b4 bench/results/engine.jsonl
    """
    from rgalign.bench.compare import compare, load
    from rgalign.bench.compare_table import describe

    found = compare(load(a), load(b), least)
    console.print(describe(found, everything=everything))
    raise typer.Exit(found.exit_code)


@app.command("report")
def bench_report(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Directory to write report.html to.")] = None,
    rows: Annotated[Path | None, typer.Option(help="Directory of rows; bench/results without.")] = None,
    docs: Annotated[
        bool, typer.Option("--docs", help="Also rewrite the tables of docs/performance.md from the rows.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit code 1 if docs/performance.md says other than the rows.")
    ] = False,
) -> None:
    """One self-contained page of plots and tables from the rows; and the tables of docs/performance.md.

    Example: rgalign bench report -o build/bench/report --docs
    """
    from rgalign.bench.performance_page import PAGE, checked, rewritten
    from rgalign.bench.report import write_report
    from rgalign.bench.result_rows import read_directory
    from rgalign.bench.rows import RESULTS
    from rgalign.errors import ConfigError

    if out is None and not docs and not check:
        raise ConfigError(where="bench report", required="--out DIR, --docs or --check", received="none of them")
    found = read_directory(rows or RESULTS)
    if out is not None:
        console.print(f"report: {write_report(found, out)}")
    if docs:
        PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
        console.print(f"tables: {PAGE}")
    if check:
        stale = checked(PAGE.read_text(encoding="utf-8"), found)
        for name in stale:
            console.print(f"{PAGE}: table {name} is not what the rows say; rgalign bench report --docs", style="red")
        raise typer.Exit(int(bool(stale)))
