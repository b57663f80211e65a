"""`rgalign serve`: the HTTP service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rgalign.cli.shared import Overrides, console

if TYPE_CHECKING:
    from rgalign.service.server import Listening

app = typer.Typer()
RECOMMENDER = "recommender."


@app.command("serve")
def serve_command(
    bundle: Annotated[Path, typer.Argument(help="Bundle directory: rgalign bundle build.", show_default=False)],
    host: Annotated[str, typer.Option(help="Address of the public listener.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: a free one, which is printed.")] = 8080,
    admin_port: Annotated[
        int | None, typer.Option(help="Of the admin listener (swap, drain) on 127.0.0.1; none without it.")
    ] = None,
    admin_token_file: Annotated[
        Path | None, typer.Option(help="File with the admin token; else RGALIGN_ADMIN_TOKEN in the environment.")
    ] = None,
    bundle_root: Annotated[
        Path | None, typer.Option(help="Where swaps find bundles and indexes by name; the bundle's own parent.")
    ] = None,
    trace_file: Annotated[Path | None, typer.Option(help="OpenTelemetry spans, one JSON object a line.")] = None,
    quiet: Annotated[bool, typer.Option(help="Log no line for each request.")] = False,
    overrides: Overrides = None,
) -> None:
    """Serve a bundle over HTTP: recommendations, intents, health, metrics. docs/http.md has the routes.

    `--set connections.max_connections=256`: the service's keys (docs/http.md). `--set recommender.threads=4`,
    `recommender.deadline_ms=200`, ...: those of the Recommender (docs/recommender.md).
    """
    import logging
    import sys

    import rgalign
    from rgalign.config import load_config
    from rgalign.recommender.config import RecommenderConfig
    from rgalign.service.logs import start_logging
    from rgalign.service.server import serve
    from rgalign.service.settings import ServiceSettings, admin_token
    from rgalign.service.tracing import trace_to

    given = [f"host={host}", f"port={port}", f"bundle_root={bundle_root or bundle.resolve().parent}"]
    if admin_port is not None:
        given.append(f"admin_port={admin_port}")
    of_recommender = [each for each in overrides or [] if each.startswith(RECOMMENDER)]
    of_service = [each for each in overrides or [] if not each.startswith(RECOMMENDER)]
    settings = load_config(ServiceSettings, None, [*given, *of_service])
    config = load_config(RecommenderConfig, None, [each.removeprefix(RECOMMENDER) for each in of_recommender])
    token = None if settings.admin_port is None else admin_token(admin_token_file)
    start_logging(level=logging.WARNING if quiet else logging.INFO)
    provider = None if trace_file is None else trace_to(trace_file)
    code = serve(rgalign.load(bundle, config), settings, token, _print_addresses)
    if provider is not None:
        provider.shutdown()
    sys.exit(code)


def _print_addresses(listening: Listening) -> None:
    console.print("serving on http://{}:{}".format(*listening.address), highlight=False)
    if listening.admin_address is not None:
        console.print("admin on http://{}:{}".format(*listening.admin_address), highlight=False)
