"""The playground: what each control does without a browser, the page's server, and the page in headless Chromium."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from rgalign.bundle import read_bundle
from rgalign.cli import app as command_line
from rgalign.errors import DataError, ModelNotFoundError
from rgalign.playground.changes import EMPTY, MISSING, WITHOUT_NEWEST, changes
from rgalign.playground.contexts import parse_context, read_contexts, written
from rgalign.playground.shown import Playground, compare
from rgalign.playground.view import View, Writer
from rgalign.recommender import Recommender, RecommenderConfig

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENT = RecommenderConfig(deadline_ms=30_000.0)


@pytest.fixture(scope="module")
def playground(bundle_dir: Path) -> Iterator[Playground]:
    bundle = read_bundle(bundle_dir)
    made = Playground(bundle, Recommender(bundle, PATIENT))
    yield made
    made.close()


def echo() -> Writer:
    def write(contexts: Sequence[Mapping[str, Any]]) -> list[str]:
        return [f"about <{context['page']}>" for context in contexts]

    return write


@pytest.fixture(scope="module")
def view(playground: Playground) -> View:
    return View(playground, [{"page": "orders", "viewed": ["orders", "home"]}, {}], echo)


def test_nearest_intents_are_those_of_the_query_part(playground: Playground) -> None:
    shown = playground.show({"page": "orders"}, 3)
    assert len(shown.top) == len(shown.nearest) == 3
    weight = 1 - playground.bundle.manifest.omega
    parts = {each.id: each.query_part / weight for each in shown.ranked}
    assert [near.cosine for near in shown.nearest] == sorted(parts.values(), reverse=True)[:3]
    assert all(abs(near.cosine) <= 1 + 1e-6 for near in shown.nearest)
    assert shown.prompt is not None
    assert [slot.name for slot in shown.prompt.slots()] == ["page"]
    assert sum(shown.prompt.tokens) > 20


def test_degraded_mode_is_the_user_part_alone(playground: Playground) -> None:
    shown = playground.show({"page": "orders"}, 3, degraded=True)
    assert shown.answer.degraded == "no_reasoner"
    assert shown.nearest == ()
    assert "Degraded mode" in shown.no_query
    assert all(each.query_part == 0 for each in shown.ranked)


def test_what_a_change_did(playground: Playground) -> None:
    before, after = playground.show({"page": "orders"}, 3), playground.show({"page": "home"}, 3)
    found = compare(before, after)
    assert found.gone == ("Page: Orders",)
    assert found.come == ("Page: Home",)
    assert [move.rank_after for move in found.moves] == sorted(move.rank_after for move in found.moves)
    assert compare(before, before).nothing
    assert not found.nothing


def test_changes_of_a_context(playground: Playground) -> None:
    offered = changes(playground.bundle.schema)
    context = {"page": "orders", "viewed": ["orders", "home"]}
    assert offered["page"].apply(context, MISSING) == {"viewed": ["orders", "home"]}
    assert offered["page"].apply(context, "home")["page"] == "home"
    history = offered["viewed: newest"]
    assert history.apply(context, WITHOUT_NEWEST)["viewed"] == ["home"]
    assert history.apply(context, EMPTY) == {"page": "orders"}
    assert history.apply(context, "home")["viewed"] == ["home", "home"]
    with pytest.raises(DataError, match="a step in it; received an empty history"):
        history.apply({}, WITHOUT_NEWEST)
    with pytest.raises(DataError, match="one of the values"):
        offered["page"].apply(context, "no page")


def test_panels_of_an_edited_context(view: View) -> None:
    same = view.refresh(0, view.pick(0), 3, False)
    assert "Not edited" in same.edited
    text, error = view.change(view.pick(0), "page", "home")
    assert error == ""
    edited = view.refresh(0, text, 3, False)
    assert "Page: Home" in edited.prompt
    assert "Page: Orders" in edited.comparison
    assert edited.picked.count("<li") == edited.edited.count("<li") == 3
    assert "degraded: no_reasoner" in view.refresh(0, text, 3, True).state
    assert view.labels()[1] == ("2. empty", 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1 column 2: required JSON"),
        ("[]", "required a JSON object; received list"),
        ('{"page": "a", "page": "b"}', "required each feature once; received &#x27;page&#x27; twice"),
        ('{"balance": NaN}', "required JSON; received NaN"),
        ('{"pages": "orders"}', "required features of the schema; received &#x27;pages&#x27;"),
        ("[" * 100_000, "at most 65536 characters"),
    ],
)
def test_what_is_wrong_is_said_in_the_state_alone(text: str, message: str, view: View) -> None:
    panels = view.refresh(0, text, 3, False)
    assert message in panels.state
    assert panels.prompt == panels.picked == panels.edited == ""
    assert view.change(text, "page", "home")[0] == text or "pages" in text


def test_nothing_typed_becomes_markup(view: View) -> None:
    panels = view.refresh(0, '{"page": "<script>alert(1)</script>"}', 3, False)
    everything = "".join(vars(panels).values()) + view.write(0, '{"page": "<b>x</b>"}')
    assert "<script" not in everything
    assert "<b>x" not in everything


def test_the_generated_query_of_both_contexts(view: View, playground: Playground) -> None:
    panel = view.write(0, '{"page": "home"}')
    assert "about &lt;home&gt;" in panel
    assert "about &lt;orders&gt;" in panel

    def none() -> Writer:
        raise ModelNotFoundError(where="generated query", required="the checkpoint", received="nothing")

    assert "required the checkpoint; received nothing" in View(playground, [{}], none).write(0, "{}")


def test_contexts_to_pick_from(playground: Playground, run: Path, tmp_path: Path) -> None:
    bundle = playground.bundle
    assert len(read_contexts(str(run.parent / "data"), bundle, 7)) == 7
    good = tmp_path / "contexts.jsonl"
    good.write_text('{"page": "orders"}\n{}\n')
    assert read_contexts(str(good), bundle, 10) == [{"page": "orders"}, {}]
    assert parse_context(written({"page": "é"})) == {"page": "é"}
    for name, text, message in (
        ("bad", '{"page": "orders"}\n{"page": 1.5}\n', "context 2: context, page"),
        ("torn", '{"page": "orders"}\n{"page"\n', "line 2: context, line 1"),
        ("none", "", "at least one context"),
    ):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_contexts(str(path), bundle, 10)
    with pytest.raises(DataError, match="no such path"):
        read_contexts(str(tmp_path / "nowhere"), bundle, 10)
    with pytest.raises(DataError, match="a bundle of simulated sessions"):
        read_contexts("simulator", bundle, 10)


def test_a_bad_bundle_ends_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio", reason="Gradio is not installed (the extra `play`)")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = CliRunner().invoke(command_line, ["play", str(tmp_path)])
    assert done.exit_code != 0
    assert isinstance(done.exception, DataError)


def test_the_server_lets_a_browser_ask_nobody_else(view: View) -> None:
    pytest.importorskip("gradio", reason="Gradio is not installed (the extra `play`)")
    from rgalign.playground.page import application

    async def run() -> None:
        transport = httpx.ASGITransport(application(view, 3, "127.0.0.1"))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            page = await client.get("/")
            assert page.status_code == 200
            assert "default-src 'self'" in page.headers["content-security-policy"]
            assert (await client.get("/", headers={"host": "elsewhere.example"})).status_code == 400

    asyncio.run(run())


@pytest.fixture
def url(bundle_dir: Path, tmp_path: Path) -> Iterator[str]:
    contexts = tmp_path / "contexts.jsonl"
    contexts.write_text(json.dumps({"page": "orders", "viewed": ["orders", "home"]}) + "\n{}\n")
    command = [sys.executable, "-m", "rgalign.cli", "play", str(bundle_dir), "--contexts", str(contexts), "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    serving = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=Path(__file__).parent
    )
    assert serving.stdout is not None
    said = []
    for line in serving.stdout:
        said.append(line)
        if found := re.search(r"http://\S+", line):
            break
    else:
        raise AssertionError("".join(said))
    yield found[0]
    serving.terminate()
    serving.wait(20)


def test_in_a_browser(url: str) -> None:
    pytest.importorskip("gradio", reason="Gradio is not installed (the extra `play`)")
    pytest.importorskip("playwright", reason="Playwright is not installed (the extra `dev`)")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width in (1280, 390):
            page = browser.new_page(viewport={"width": width, "height": 1_200})
            page.set_default_timeout(60_000)
            expect.set_options(timeout=60_000)
            asked: list[str] = []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto(url)
            expect(page.locator("#top-picked li")).to_have_count(5)
            page.locator("#context-json textarea").fill('{"page": "home"}')
            expect(page.locator("#comparison")).to_contain_text("Page: Orders")
            expect(page.locator("#top-edited li")).to_have_count(5)
            page.locator("#degraded input").check()
            expect(page.locator("#state")).to_contain_text("degraded: no_reasoner")
            page.locator("#context-json textarea").fill("{")
            expect(page.locator("#state")).to_contain_text("required JSON")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            elsewhere = [each for each in asked if each.startswith(("http", "ws")) and not each.startswith(url)]
            assert elsewhere == []
        browser.close()
