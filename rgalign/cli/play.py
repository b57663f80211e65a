"""`rgalign play`: the playground."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rgalign.cli.shared import console

if TYPE_CHECKING:
    from rgalign.bundle import Bundle
    from rgalign.playground.view import Writer

app = typer.Typer()


@app.command("play")
def play_command(
    bundle: Annotated[Path, typer.Argument(help="Bundle directory: rgalign bundle build.", show_default=False)],
    contexts: Annotated[
        str | None, typer.Option(help="JSONL file, dataset directory or `simulator`; none: the empty context.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="The reasoner's model, for generated queries; default: the engine's source.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=20, help="How many intents.")] = 5,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0: a free one, which is printed.")] = 7860,
    deadline_ms: Annotated[float, typer.Option(help="Of an answer, degraded after it.")] = 10_000.0,
    threads: Annotated[int, typer.Option(min=1, help="Of the reasoner.")] = 1,
    max_contexts: Annotated[int, typer.Option(min=1, help="Contexts to pick from.")] = 200,
) -> None:
    """A page on which a bundle's answers can be seen and a context changed. docs/playground.md."""
    import importlib.util

    from rgalign.config import load_config
    from rgalign.errors import ConfigError

    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when it is imported: a checkpoint comes from this machine
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError(where="rgalign play", required="pip install 'rgalign[play]'", received="no gradio")
    from rgalign.bundle import read_bundle
    from rgalign.playground.contexts import read_contexts
    from rgalign.playground.page import serve
    from rgalign.playground.shown import Playground
    from rgalign.playground.view import View
    from rgalign.recommender import Recommender, RecommenderConfig

    given = [f"deadline_ms={deadline_ms}", f"threads={threads}", "cache_rows=512"]
    config = load_config(RecommenderConfig, None, given)
    opened = read_bundle(bundle)
    picked = read_contexts(contexts, opened, max_contexts) if contexts is not None else [{}]
    playground = Playground(opened, Recommender(opened, config))
    try:
        view = View(playground, picked, writer_of(opened, checkpoint))
        if not _is_loopback(host):
            console.print(f"[yellow]{host} is not a loopback address: the page has no password[/]", highlight=False)
        serve(view, k, host, port, _print_address)
    finally:
        playground.close()


def writer_of(bundle: Bundle, checkpoint: str | None) -> Callable[[], Writer]:
    """What loads the bundle's checkpoint as a writer of queries, once it is called."""

    def opened() -> Writer:
        from rgalign.training.teachers.bundle_reasoner import bundle_reasoner, written_queries

        teacher = bundle_reasoner(bundle, checkpoint)
        return lambda contexts: written_queries(teacher, contexts)

    return opened


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _print_address(host: str, port: int) -> None:
    named = f"[{host}]" if ":" in host else host
    console.print(f"playground on http://{named}:{port}", highlight=False, markup=False)
