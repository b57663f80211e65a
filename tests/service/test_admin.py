"""The admin listener: nothing without the token, nothing outside the root, one swap at a time."""

from __future__ import annotations

import ast
import asyncio
import inspect
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import rgalign.service.admin
from rgalign.service.admin import ADMIN_ROUTES, admin_app
from rgalign.service.app import Service, public_app
from rgalign.service.artefacts import find
from rgalign.service.errors import ServiceFault
from rgalign.service.settings import ServiceSettings

TOKEN = "a-token-of-the-tests"
BEARER = {"authorization": f"Bearer {TOKEN}"}
Client = httpx.AsyncClient
Use = Callable[[Client, Client, Any], Awaitable[None]]
WithAdmin = Callable[[Use, Path | None], None]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("good", "other", "empty"):
        (tmp_path / "root" / name).mkdir(parents=True)
    for name in ("good", "other"):
        (tmp_path / "root" / name / "manifest.json").write_text("{}")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "manifest.json").write_text("{}")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "root" / "file").write_text("x")
    return tmp_path / "root"


@pytest.fixture
def with_admin(fakes: Any) -> WithAdmin:
    def with_admin(use: Use, root: Path | None) -> None:
        async def run() -> None:
            recommender = fakes.FakeRecommender()
            service = Service.of(recommender, ServiceSettings(bundle_root=root))
            async with (
                Client(transport=httpx.ASGITransport(admin_app(service, TOKEN)), base_url="http://a") as admin,
                Client(transport=httpx.ASGITransport(public_app(service)), base_url="http://p") as public,
            ):
                await use(admin, public, recommender)

        asyncio.run(run())

    return with_admin


def test_swaps_by_name(root: Path, with_admin: WithAdmin) -> None:
    async def use(admin: Client, public: Client, recommender: Any) -> None:
        before = (await public.post("/v1/recommend", json={"context": {}})).json()
        swapped = await admin.post("/admin/swap_index", json={"name": "good"}, headers=BEARER)
        assert (swapped.status_code, swapped.json()) == (200, {"generation": 2})
        bundle = (await admin.post("/admin/swap_bundle", json={"name": "other"}, headers=BEARER)).json()["bundle"]
        after = (await public.post("/v1/recommend", json={"context": {}})).json()
        assert (before["generation"], after["generation"], after["bundle"]) == (1, 2, bundle)
        status = (await admin.get("/admin/status", headers=BEARER)).json()
        assert (status["generation"], status["bundle"], status["draining"]) == (2, bundle, False)

    with_admin(use, root)


def test_a_refused_swap_changes_nothing_and_tells_no_path(root: Path, with_admin: WithAdmin) -> None:
    async def use(admin: Client, public: Client, recommender: Any) -> None:
        state = recommender.state
        for route in ("/admin/swap_index", "/admin/swap_bundle"):
            response = await admin.post(route, json={"name": "empty"}, headers=BEARER)
            error = response.json()["error"]
            assert (response.status_code, error["code"], error["required"]) == (422, "swap_refused", "ProvenanceError")
            assert str(root) not in response.text
        assert recommender.state == state

    with_admin(use, root)


@pytest.mark.parametrize("name", ["../outside", "..", ".", "", "/etc/passwd", "a%2f..", "good\x00", "good/", ".hidden",
                                  "g" * 65, "göod", "good\n", "a\\b", "~", "good/../good"])  # fmt: skip
def test_what_is_no_plain_name_opens_nothing(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: Any, **__: Any) -> int:
        raise AssertionError(f"opened for {name!r}")

    monkeypatch.setattr("rgalign.service.artefacts.os.open", opened)
    with pytest.raises(ServiceFault) as caught:
        find(root, name)
    assert caught.value.status == 422


@pytest.mark.parametrize("name", ["link", "file", "absent"])
def test_links_files_and_absent_names_are_unknown(name: str, root: Path) -> None:
    assert find(root, "good") == root / "good"
    with pytest.raises(ServiceFault) as caught:
        find(root, name)
    assert caught.value.status == 404
    with pytest.raises(ServiceFault):
        find(None, "good")


@pytest.mark.parametrize(
    "given",
    [None, "", "Bearer", "Bearer ", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x",
     f"Bearer {TOKEN.upper()}"],
)  # fmt: skip
def test_no_route_without_the_token(given: str | None, root: Path, with_admin: WithAdmin) -> None:
    async def use(admin: Client, public: Client, recommender: Any) -> None:
        headers = {} if given is None else {"authorization": given}
        for path in (*ADMIN_ROUTES, "/", "/nothing", "/v1/recommend", "/openapi.json"):
            for method in ("GET", "POST", "OPTIONS"):
                response = await admin.request(method, path, headers=headers, json={"name": "good"})
                assert response.status_code == 401, (method, path)
        assert recommender.state.generation == 1

    with_admin(use, root)


def test_two_authorizations_are_none(root: Path, with_admin: WithAdmin) -> None:
    async def use(admin: Client, public: Client, recommender: Any) -> None:
        twice = [("authorization", f"Bearer {TOKEN}")] * 2
        assert (await admin.get("/admin/status", headers=twice)).status_code == 401

    with_admin(use, root)


def test_the_public_listener_has_no_admin_route(root: Path, with_admin: WithAdmin) -> None:
    async def use(admin: Client, public: Client, recommender: Any) -> None:
        rng = random.Random(0)
        spellings = list(ADMIN_ROUTES)
        for _ in range(300):
            route = rng.choice(ADMIN_ROUTES)
            pieces = [
                rng.choice((c, c, c.upper(), f"%{ord(c):02x}")) if c != "/" else rng.choice(("/", "/", "//", "/./"))
                for c in route
            ]
            spellings.append("".join(pieces) + rng.choice(("", "/", "?x", "%00", ";a")))
        for path in spellings:
            response = await public.post(f"http://p{path}", json={"name": "good"}, headers=BEARER)
            assert response.status_code == 404, path
        assert recommender.state.generation == 1

    with_admin(use, root)


def test_one_swap_at_a_time_and_requests_meanwhile(root: Path, with_admin: WithAdmin) -> None:
    async def use(admin: Client, public: Client, recommender: Any) -> None:
        (root / "good").rename(root / "slow")
        slow = asyncio.ensure_future(admin.post("/admin/swap_index", json={"name": "slow"}, headers=BEARER))
        assert await asyncio.to_thread(recommender.swapping.wait, 10)
        for route in ("/admin/swap_index", "/admin/swap_bundle"):
            busy = await admin.post(route, json={"name": "other"}, headers=BEARER)
            assert (busy.status_code, busy.json()["error"]["code"]) == (409, "swap_busy")
        assert (await public.post("/v1/recommend", json={"context": {}})).json()["generation"] == 1
        recommender.swap_may_end.set()
        assert (await slow).json() == {"generation": 2}
        assert (await admin.post("/admin/swap_index", json={"name": "other"}, headers=BEARER)).status_code == 200

    with_admin(use, root)


def test_drain_waits_for_who_is_under_way(root: Path, with_admin: WithAdmin) -> None:
    async def use(admin: Client, public: Client, recommender: Any) -> None:
        under_way = asyncio.ensure_future(public.post("/v1/recommend", json={"context": {"ms": 200}}))
        while recommender.asked == 0:
            await asyncio.sleep(0.01)
        early = await admin.post("/admin/drain", json={"timeout_s": 0}, headers=BEARER)
        assert early.json() == {"drained": False, "in_flight": 1}
        refused = await public.post("/v1/recommend", json={"context": {}})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        late = await admin.post("/admin/drain", json={"timeout_s": 10}, headers=BEARER)
        assert late.json() == {"drained": True, "in_flight": 0}
        assert (await under_way).status_code == 200

    with_admin(use, root)


def test_the_token_is_compared_in_constant_time() -> None:
    """No == between what came and what is kept."""
    tree = ast.parse(inspect.getsource(rgalign.service.admin.BearerOnly))
    compared = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Compare)]
    assert not any("token" in text or "digest" in text for text in compared)
    assert "hmac.compare_digest" in inspect.getsource(rgalign.service.admin.BearerOnly)
