"""The Gradio page of a View, and the server that hands it to a browser.

Nothing is fetched from another host: fonts are the system's, analytics are off, and a content security policy tells
the browser to ask this server alone.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import astuple
from typing import Any

from rgalign.errors import ConfigError
from rgalign.playground.panels import CSS
from rgalign.playground.view import View

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_K = 20
EVERYWHERE = ("0.0.0.0", "::", "")
# Gradio's own scripts are inline and compile templates.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; frame-ancestors 'none'"
)
PAGE_CSS = (
    CSS + "\n#context-json textarea { font-family: ui-monospace, 'DejaVu Sans Mono', monospace; font-size: 12.5px; }"
)


def theme() -> Any:
    fonts = ["system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
    return gr.themes.Default(font=fonts, font_mono=["ui-monospace", "DejaVu Sans Mono", "Menlo", "monospace"])


def build_page(view: View, k: int) -> Any:
    """The page as ``gradio.Blocks``."""
    bundle = view.playground.bundle
    first, *_ = view.changes
    facts = f"{bundle.schema.name}: {len(bundle.index.ids)} intents, ω = {bundle.manifest.omega:.2f}"
    with gr.Blocks(title="rgalign playground", analytics_enabled=False) as page:
        gr.Markdown(f"## rgalign playground\n{facts}")
        with gr.Row(elem_classes="pg-row"):
            with gr.Column(min_width=280):
                picked = gr.Dropdown(view.labels(), value=0, label="Context", elem_id="picked")
                with gr.Row():
                    label = gr.Dropdown(
                        list(view.changes), value=first, label="Change", min_width=140, elem_id="change"
                    )
                    option = gr.Dropdown(view.options(first), value=None, label="into", min_width=140, elem_id="option")
                text = gr.Textbox(
                    view.pick(0), label="Edited context (JSON)", lines=14, max_lines=24, elem_id="context-json"
                )
                restore = gr.Button("Back to the picked context", size="sm", elem_id="restore")
                number = gr.Slider(1, MAX_K, value=k, step=1, label="Intents shown", elem_id="k")
                degraded = gr.Checkbox(label="Degraded mode: without the reasoner, ω = 1", elem_id="degraded")
            with gr.Column(min_width=280):
                state = gr.HTML(elem_id="state")
                gr.Markdown("### Prompt of the edited context")
                prompt = gr.HTML(elem_id="prompt")
        with gr.Row(elem_classes="pg-row"):
            with gr.Column(min_width=280):
                gr.Markdown("### Picked context")
                before = gr.HTML(elem_id="top-picked")
            with gr.Column(min_width=280):
                gr.Markdown("### Edited context")
                after = gr.HTML(elem_id="top-edited")
        gr.Markdown("### What changed")
        comparison = gr.HTML(elem_id="comparison")
        with gr.Row(elem_classes="pg-row"):
            with gr.Column(min_width=280):
                gr.Markdown("### Nearest to the latent query")
                nearest = gr.HTML(elem_id="nearest")
            with gr.Column(min_width=280):
                gr.Markdown("### Generated query")
                write = gr.Button("Let the reasoner write it", size="sm", interactive=not view.silent, elem_id="write")
                query = gr.HTML(view.write(0, "{}") if view.silent else "", elem_id="query")

        shown = [state, prompt, before, after, nearest, comparison]

        def refresh(row: int, typed: str, intents: float, without: bool) -> tuple[str, ...]:
            return astuple(view.refresh(row, typed, int(intents), without))

        def other_options(name: str) -> Any:
            return gr.Dropdown(view.options(name), value=None)

        asked = {"fn": refresh, "inputs": [picked, text, number, degraded], "outputs": shown}
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        latest = {"trigger_mode": "always_last", **quiet}
        page.load(**asked, **quiet)
        for control in (text, number, degraded):
            control.change(**asked, **latest)
        # The text may be the picked context's already, and then nothing would ask for the panels.
        for event in (picked.input, restore.click):
            event(view.pick, [picked], [text], **quiet).then(**asked, **quiet)
        label.input(other_options, [label], [option], **quiet)
        option.input(view.change, [text, label, option], [text, state], **quiet)
        write.click(view.write, [picked, text], [query], api_visibility="private")
    return page


def application(view: View, k: int, host: str) -> FastAPI:
    """The page as an ASGI application for ``host``."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    page = build_page(view, k)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        server_name=host,
        theme=theme(),
        css=PAGE_CSS,
        footer_links=[],
        show_error=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
    )
    if host not in EVERYWHERE:  # a name that another site points here is refused
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[host, "127.0.0.1", "localhost"])
    app.add_middleware(OnlyFromHere)
    return app


class OnlyFromHere:
    """Adds the content security policy to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                header = (b"content-security-policy", POLICY.encode())
                message = {**message, "headers": [*message.get("headers", []), header]}
            await send(message)

        await self._app(scope, receive, with_policy)


def serve(view: View, k: int, host: str, port: int, on_ready: Callable[[str, int], None]) -> None:
    """Serves the page until a signal.

    Args:
        on_ready: gets the address once it is bound; port 0 takes a free one.

    Raises:
        ConfigError: the address cannot be bound.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        required = "an address that is free"
        raise ConfigError(where=f"{host}:{port}", required=required, received=error.strerror or str(error)) from error
    with listener:
        app = application(view, k, host)
        on_ready(host, listener.getsockname()[1])
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
        uvicorn.Server(config).run(sockets=[listener])
