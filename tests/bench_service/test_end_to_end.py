"""Ours beside the peer service: the same answers or no timing, curves read rightly, and one whole small run."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rgalign.bench import end_to_end
from rgalign.bench.end_to_end_bundles import bundles, retemplated
from rgalign.bench.end_to_end_curves import OURS, PEER, compared, rate_within
from rgalign.bench.loadgen_contexts import drawn_contexts, read_contexts
from rgalign.bench.loadgen_targets import HttpTarget
from rgalign.bundle import Bundle, read_bundle
from rgalign.chat_format import TEMPLATES, PromptTemplate
from rgalign.errors import ConfigError, DataError, ProvenanceError
from rgalign.recommender.context import ContextReader

pytest.importorskip("faiss", reason="the [bench] extra")


@pytest.fixture(scope="module")
def bundle(bundle_dir: Path) -> Bundle:
    return read_bundle(bundle_dir)


def points(*pairs: tuple[float, float]) -> list[dict[str, Any]]:
    return [{"rate": rate, "promised_p99_ms": None if p99 == math.inf else p99} for rate, p99 in pairs]


# ---- curves ----------------------------------------------------------------------------------------------------------


def test_the_rate_within_a_limit_lies_between_the_points_round_it() -> None:
    curve = points((10, 100), (20, 1_000), (5, 50))
    assert rate_within(curve, 100) == (10, False)
    assert rate_within(curve, 1_000 / 10**0.5) == (pytest.approx(15), False)  # half way in log p99
    assert rate_within(curve, 1_000) == (20, True)
    assert rate_within(curve, 49) == (None, False)
    assert rate_within(points((5, 50), (10, math.inf)), 1e9) == (5, False)
    assert rate_within(points((5, 50), (6, 200), (7, 60)), 100)[0] == pytest.approx(5.5)  # what was beyond it, is


def test_services_are_compared_at_equal_p99_and_at_equal_load() -> None:
    curves = {
        OURS: points((8, 100), (20, 200), (40, 400), (45, 4_000)),
        PEER: points((4, 300), (8, 400), (10, 5_000)),
    }
    found = compared(curves, {OURS: 50.0, PEER: 10.0})
    assert found["capacity_ratio"] == 5
    assert found["equal_p99"] == {"p99_ms": 400, "per_s": {OURS: 40, PEER: 8}, "at_least": [], "ratio": 5}
    assert found["equal_load"] == {"rate": 8, "p99_ms": {OURS: 100, PEER: 400}, "p99_ratio": 0.25}
    assert found["own_load_p99_ms"] == {OURS: 400, PEER: 400}
    within = found["throughput_within_ms"]["250"]
    assert within["per_s"] == {OURS: pytest.approx(26.44, abs=0.01), PEER: None}
    assert within["ratio"] is None


# ---- contexts and bundles --------------------------------------------------------------------------------------------


def test_drawn_contexts_are_what_the_schema_takes(bundle: Bundle) -> None:
    contexts = drawn_contexts(bundle, 50, seed=1)
    assert drawn_contexts(bundle, 50, seed=1) == contexts != drawn_contexts(bundle, 50, seed=2)
    reader = ContextReader(bundle.schema)
    for context in contexts:
        assert bundle.prompts is not None
        assert len(bundle.prompts.encode(reader.read(context)).slot_ids) > 0
    assert {name for context in contexts for name in context} == set(bundle.schema.columns)
    bundle.encoder.counters.clear()
    for context in contexts:
        bundle.encoder.encode(reader.table(reader.read(context)))
    assert bundle.encoder.counters.total() == 0  # all values are known ones


@pytest.mark.parametrize(("text", "complaint"), [("", "an empty file"), ("[1]\n", ":1: required a JSON object")])
def test_contexts_that_are_none_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "contexts").write_text(text)
    with pytest.raises(DataError, match=complaint):
        read_contexts(tmp_path / "contexts")


def test_another_template_changes_the_words_round_the_slots_and_nothing_else(
    bundle: Bundle, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setitem(TEMPLATES, "late", PromptTemplate(name="late", system="", before="", after="\nGuess:"))
    other = read_bundle(retemplated(bundle, "late", tmp_path))
    assert bundle.prompts is not None
    assert other.prompts is not None
    assert other.hash != bundle.hash
    assert len(other.prompts.prefix_ids) < len(bundle.prompts.prefix_ids)
    context = ContextReader(bundle.schema).read(drawn_contexts(bundle, 1)[0])
    assert (other.prompts.encode(context).slot_ids == bundle.prompts.encode(context).slot_ids).all()
    same = {name for name, file in bundle.manifest.files.items() if other.manifest.files[name] == file}
    assert same == set(bundle.manifest.files)
    assert bundles(["late", "own"], tmp_path, bundle=bundle.path) == {"late": other.path, "own": bundle.path}
    with pytest.raises(ConfigError, match="--bundle or --run"):
        bundles(["own"], tmp_path, bundle=bundle.path, run=bundle.path)


# ---- the same answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "peers", "complaint"),
    [
        ({"a": 0.9, "b": 0.5}, {"a": 0.9, "b": 0.5}, None),
        ({"a": 0.9005, "b": 0.5}, {"a": 0.9, "b": 0.5}, None),
        ({"b": 0.9001, "a": 0.9}, {"a": 0.9001, "b": 0.9}, None),  # nearly a tie
        ({"a": 0.902, "b": 0.5}, {"a": 0.9, "b": 0.5}, "do not agree within 0.001"),
        ({"c": 0.9, "b": 0.5}, {"a": 0.9, "b": 0.5}, "do not agree"),  # another best one
        ({"a": 0.5, "b": 0.5}, {"a": 0.5, "b": 0.5}, "all scores are alike"),
    ],
)
def test_nothing_is_timed_unless_both_answer_alike(
    bundle: Bundle, monkeypatch: Any, ours: dict[str, float], peers: dict[str, float], complaint: str | None
) -> None:
    answers = {1: ours, 2: peers}

    async def rankings(target: HttpTarget, contexts: Any) -> list[dict[str, float]]:
        return [answers[target.port]]

    monkeypatch.setattr(end_to_end, "rankings", rankings)
    targets = {OURS: HttpTarget("", 1, 3, None), PEER: HttpTarget("", 2, 3, None)}
    if complaint is None:
        assert end_to_end.agreement(targets, [{}], bundle)["contexts"] == 1
        return
    with pytest.raises(SystemExit, match=complaint):
        end_to_end.agreement(targets, [{}], bundle)


def test_the_peer_batches_what_waits_and_refuses_beyond_its_queue(monkeypatch: Any) -> None:
    from rgalign.bench.peers import fastapi_service

    monkeypatch.setattr(fastapi_service, "MAX_QUEUE", 40)
    sizes: list[int] = []

    def recommend(contexts: list[dict[str, Any]], k: int) -> list[list[str]]:
        sizes.append(len(contexts))
        if any(context.get("breaks") for context in contexts):
            raise RuntimeError("a fault of this test")
        return [[str(context["n"])] * k for context in contexts]

    async def ask() -> None:
        batches = fastapi_service.DynamicBatches(SimpleNamespace(recommend=recommend))  # type: ignore[arg-type]
        waiting = [asyncio.ensure_future(batches.ask({"n": n}, 1 + n % 3)) for n in range(41)]
        await asyncio.sleep(0)
        running = asyncio.ensure_future(batches.run())
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(answers[-1], asyncio.QueueFull)
        assert answers[:-1] == [[str(n)] * (1 + n % 3) for n in range(40)]
        broken = await asyncio.gather(
            batches.ask({"breaks": True, "n": 0}, 1), batches.ask({"n": 1}, 1), return_exceptions=True
        )
        assert [type(each) for each in broken] == [RuntimeError, RuntimeError]
        assert await batches.ask({"n": 7}, 1) == ["7"]  # and goes on
        running.cancel()

    asyncio.run(asyncio.wait_for(ask(), 60))
    assert sizes == [16, 16, 8, 2, 1]


def test_the_peer_refuses_a_model_that_is_not_the_engines(bundle_dir: Path, tmp_path: Path) -> None:
    from rgalign.bench.peers.fastapi_service import Model

    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ProvenanceError, match="required the engine's"):
        Model(bundle_dir, str(tmp_path))


# ---- all of it -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_both_services_are_measured_and_compared(
    bundle_dir: Path, tiny_run: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(end_to_end, "WORK", tmp_path / "work")
    out = tmp_path / "rows.jsonl"
    files = ["--out", str(out), "--plot", str(tmp_path / "curves.png")]
    short = ["--shares", "0.3", "--seconds", "1.5", "--requests", "1", "--capacity-seconds", "1", "--checked", "12"]
    model = ["--bundle", str(bundle_dir), "--model", str(tiny_run.parent / "model"), "--templates", "own"]
    end_to_end.main([*model, *short, *files, "--threads", "1"])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    measured = [row for row in rows if row["benchmark"] == "end_to_end"]
    assert [row["service"] for row in measured] == [OURS, PEER, OURS, PEER]
    assert measured[2]["rate"] == measured[3]["rate"]
    assert measured[2]["requests"] == measured[3]["requests"]  # the same arrivals
    for row in measured:
        assert row["outcomes"].get("ok", 0) > 0
        assert row["agreement"]["same_best"] == 1
        assert row["agreement"]["largest_difference"] < 1e-3
        assert "share" in row["shared"]
    (verdict,) = [row for row in rows if row["benchmark"] == "end_to_end verdict"]
    assert set(verdict["capacity_per_s"]) == {OURS, PEER}
    assert (tmp_path / "curves.png").stat().st_size > 10_000
