"""A recommendation is the run's own, whatever it was batched with; malformed contexts are refused by name."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from rgalign.batcher import BatcherClosed
from rgalign.bench.soak import size, summarise
from rgalign.data.dataset import Dataset
from rgalign.errors import ConfigError, DataError
from rgalign.recommender import Recommendation, Recommender, RecommenderConfig, Timings, load, without_reasoner
from rgalign.training.fused_scores import rank_sessions
from rgalign.training.index_build import index_of
from rgalign.training.latents import LatentStore
from rgalign.training.ranker_files import load_ranker

PARTITIONED, PARTITIONS = size(64, 512), size(3, 50)
NO_TIME = Timings(0, 0, 0, 0, 0)


@pytest.fixture(scope="module")
def recommender(bundle_dir: Path) -> Iterator[Recommender]:
    with load(bundle_dir, RecommenderConfig(deadline_ms=30_000)) as made:
        yield made


def content(answer: Recommendation) -> Recommendation:
    """All but the time it took."""
    return replace(answer, timings=NO_TIME)


def test_an_answer_is_the_runs_own(recommender: Recommender, run: Path) -> None:
    dataset = Dataset.open(run.parent / "data")
    loaded, store = load_ranker(run), LatentStore.open(run.parent / "latents")
    index, table = index_of(loaded), dataset.table("test")
    latents = np.array(store.take(store.rows(dataset, "test")))
    for number, row in enumerate(table.to_pylist()):
        batch = loaded.encoder.encode(table.slice(number, 1), latents[number : number + 1])
        expected = rank_sessions(loaded.ranker, index, batch, 3)
        answer = recommender.recommend(row, 3)
        assert answer.degraded is None
        assert [each.id for each in answer.intents] == expected.ids[0]
        assert torch.equal(torch.tensor([each.score for each in answer.intents]), expected.scores[0])
        assert torch.equal(torch.tensor([each.user_part for each in answer.intents]), expected.user_part[0])
        assert torch.equal(torch.tensor([each.query_part for each in answer.intents]), expected.query_part[0])
        assert expected.query_part.abs().max() > 1e-3


def test_probabilities_and_titles(recommender: Recommender, sessions: list[dict[str, Any]]) -> None:
    answer = recommender.recommend(sessions[0], 100)
    assert len(answer.intents) == len(recommender.intents()) == 7
    assert sum(each.probability for each in answer.intents) == pytest.approx(1.0)
    ordered = [each.probability for each in answer.intents]
    assert ordered == sorted(ordered, reverse=True)
    assert {each.title for each in answer.intents} == {each.title for each in recommender.intents()}
    for each in answer.intents:
        assert each.score == pytest.approx(each.user_part + each.query_part, abs=1e-6)
    times = answer.timings
    assert times.total_ms >= times.queue_ms + times.reason_ms + times.rank_ms
    assert min(times.tokenise_ms, times.reason_ms, times.rank_ms) > 0


def test_show_is_the_threshold(bundle_dir: Path, sessions: list[dict[str, Any]]) -> None:
    for threshold, shown in ((0.0, True), (1.0, False)):
        with load(bundle_dir) as recommender:
            manifest = recommender._served.bundle.manifest
            assert manifest.full is not None
            full = manifest.full.model_copy(update={"threshold": threshold})
            changed = replace(recommender._served.bundle, manifest=manifest.model_copy(update={"full": full}))
            recommender._served.bundle = changed
            assert recommender.recommend(sessions[0], deadline_ms=30_000).show is shown


def test_alone_and_in_any_company_the_same_bits(
    faulty: Callable[..., tuple[Recommender, Any]], sessions: list[dict[str, Any]]
) -> None:
    recommender, reasoner = faulty(deadline_ms=60_000.0)
    rng = np.random.default_rng(0)
    contexts = [sessions[row] for row in rng.integers(len(sessions), size=PARTITIONED)]
    alone = [content(recommender.recommend(context)) for context in contexts]
    assert len({answer.intents for answer in alone}) > 10
    reasoner.fault, reasoner.slow_s = "slow", 0.1  # or each batch would be a single row
    before = recommender.health().queue
    assert before is not None
    assert [content(each) for each in recommender.recommend_many(contexts)] == alone

    async def in_parts() -> None:
        for _ in range(PARTITIONS):
            order = rng.permutation(len(contexts))
            cuts = np.sort(rng.integers(len(contexts), size=len(contexts) // 12))
            for part in np.split(order, cuts):
                answers = await asyncio.gather(*(recommender.arecommend(contexts[row]) for row in part[:48]))
                assert [content(each) for each in answers] == [alone[row] for row in part[:48]]

    asyncio.run(in_parts())
    after = recommender.health().queue
    assert after is not None
    rows, batches = after.rows - before.rows, after.batches - before.batches
    assert rows > 1.5 * batches  # or nothing was batched
    summarise(
        "batched_bits", requests=PARTITIONED, partitions=PARTITIONS, rows=rows, batches=batches, equal_bit_for_bit=True
    )


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ({"page": 1.5}, "context, page: required a string or integer; received float"),
        ({"page": True}, "context, page: required a string or integer; received bool"),
        ({"page": ["orders"]}, "context, page: .*received list"),
        ({"page": "\ud800"}, "context, page: required Unicode text"),
        ({"page": 1 << 70}, "context, page: .*64-bit"),
        ({"balance": "much"}, "context, balance: required a number; received str"),
        ({"balance": False}, "context, balance: required a number; received bool"),
        ({"balance": float("nan")}, "context, balance: required a finite number"),
        ({"balance": 10**400}, "context, balance: required a finite number"),
        ({"viewed": "orders"}, "context, viewed: required a list; received str"),
        ({"viewed": [["orders"]]}, "context, viewed: .*received list"),
        ({"viewed": {"orders": 1}}, "context, viewed: required a list; received dict"),
        ({"contact_intent": ["i1"]}, "context, contacts: required members of equal length"),
        ({"contact_intent": ["i1"], "contact_age": ["old"]}, "context, contact_age: required a number"),
        ({"pages": "orders"}, "context: required features of the schema; received 'pages'"),
        ({3: "orders"}, "context: required features of the schema; received int"),
        ([], "context: required a mapping of features; received list"),
    ],
)
def test_malformed_contexts(recommender: Recommender, context: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        recommender.recommend(context)
    queue = recommender.health().queue
    assert queue is not None
    assert queue.waiting == queue.in_model == 0


@pytest.mark.parametrize("k", [0, -1, True, 2.0, "3"])
def test_malformed_k(recommender: Recommender, k: Any) -> None:
    with pytest.raises(DataError, match="recommend k"):
        recommender.recommend({}, k)


@pytest.mark.parametrize("deadline_ms", [0, -5.0, float("inf"), float("nan"), "100", True])
def test_malformed_deadlines(recommender: Recommender, deadline_ms: Any) -> None:
    with pytest.raises(DataError, match="recommend deadline_ms"):
        recommender.recommend({}, deadline_ms=deadline_ms)


def test_unknown_values_are_counted_and_missing_ones_are_none(recommender: Recommender) -> None:
    before = recommender.health().unknown_values
    unknown = recommender.recommend({"page": "a page of tomorrow"})
    assert recommender.health().unknown_values == before + 1
    assert content(recommender.recommend({"page": None, "viewed": None})) == content(recommender.recommend({}))
    assert content(unknown).intents != content(recommender.recommend({})).intents


def test_a_bundle_without_a_reasoner_in_use(bundle_dir: Path, sessions: list[dict[str, Any]]) -> None:
    with load(bundle_dir, make_reasoner=without_reasoner) as recommender:
        answer = recommender.recommend(sessions[0])
        assert answer.degraded == "no_reasoner"
        assert all(each.query_part == 0 for each in answer.intents)
        assert recommender.health().queue is None
        assert recommender.health().degraded


def test_the_reasoner_on_a_gpu(
    bundle_dir: Path, recommender: Recommender, sessions: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU's forward by its kernels' definitions where there is no GPU."""
    cuda = pytest.importorskip("rgalign.reasoner.engine.cuda.reasoner", reason="Triton is not installed")
    config = RecommenderConfig(device="cuda", deadline_ms=30_000)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="required a CUDA device"):
            load(bundle_dir, config)
        monkeypatch.setattr(cuda, "load_cuda_engine", partial(cuda.load_cuda_engine, device="cpu"))
    with load(bundle_dir, config) as on_gpu:
        for session in sessions[:3]:
            found, expected = on_gpu.recommend(session), recommender.recommend(session)
            assert found.degraded is None
            assert [each.id for each in found.intents] == [each.id for each in expected.intents]
            scores = [[each.score for each in answer.intents] for answer in (found, expected)]
            np.testing.assert_allclose(*scores, atol=1e-3)


def test_a_ranker_that_has_no_query_tower_is_whole(place: Path, run: Path, tiny: Any) -> None:
    plain = tiny.make_bundle(tiny.train(place, with_latents=False), place / "bundle-plain")
    with load(plain) as recommender:
        assert recommender.recommend({"page": "orders"}).degraded is None
        assert not recommender.health().degraded
        assert len(recommender.recommend_many([{}] * 200)) == 200


def test_after_close_requests_are_refused(bundle_dir: Path) -> None:
    recommender = load(bundle_dir)
    assert recommender.health().ready
    recommender.drain(1.0)
    assert not recommender.health().ready
    with pytest.raises(BatcherClosed):
        recommender.recommend({})
    recommender.close()
    recommender.close()
    with pytest.raises(BatcherClosed):
        asyncio.run(recommender.arecommend({}))


def test_the_package_is_imported_without_torch() -> None:
    code = (
        "import rgalign, sys; assert 'torch' not in sys.modules; rgalign.load; assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_dataset_rows_of_integers_are_read_as_strings(recommender: Recommender) -> None:
    served = recommender._served
    table = served._contexts.table(served._contexts.read({"page": 7, "viewed": [1, None]}))
    assert table.column("page").to_pylist() == ["7"]
    assert table.column("viewed").to_pylist() == [["1", None]]
    assert table.schema.field("contact_age").type == pa.list_(pa.float64())
