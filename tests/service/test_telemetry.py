"""Metrics, spans and logs: what they say, and that no client can make them grow or read there what another sent."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from rgalign.service.logs import LOG, JsonLines, log_event
from rgalign.service.tracing import JsonLinesExporter, caller

WithService = Callable[..., None]


def series(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_metrics_count_what_was_answered(with_service: WithService) -> None:
    async def use(client: Any, service: Any, recommender: Any) -> None:
        for do in ("", "", "degraded", "overload", "late"):
            await client.post("/v1/recommend", json={"context": {"do": do}})
        await client.post("/v1/recommend_many", json={"contexts": [{}, {"do": "degraded"}, {"nope": 1}]})
        await client.post("/v1/recommend", content=b"{")
        found = series((await client.get("/metrics")).content)

        def requests(route: str, status: int, code: str) -> float:
            labels = (("code", code), ("route", route), ("status", str(status)))
            return found["rgalign_http_requests_total", labels]

        assert requests("/v1/recommend", 200, "ok") == 3
        assert requests("/v1/recommend", 429, "overloaded") == 1
        assert requests("/v1/recommend", 504, "deadline_exceeded") == 1
        assert requests("/v1/recommend", 415, "unsupported_media_type") == 1
        assert requests("/v1/recommend_many", 200, "ok") == 1
        assert found["rgalign_recommendations_total", (("degraded", "no"),)] == 3
        assert found["rgalign_recommendations_total", (("degraded", "late"),)] == 2
        assert found["rgalign_stage_seconds_count", (("stage", "reason"),)] == 5
        assert found["rgalign_stage_seconds_sum", (("stage", "reason"),)] == pytest.approx(5 * 0.3e-3)
        assert found["rgalign_batcher_answered_total", (("outcome", "row"),)] == 6
        assert found["rgalign_batcher_queue_cap", ()] == 64
        assert found["rgalign_ready", ()] == found["rgalign_breaker", (("state", "closed"),)] == 1
        assert found["rgalign_breaker", (("state", "open"),)] == 0
        assert found["rgalign_bundle", (("bundle", "b" * 64),)] == 1
        assert found["rgalign_http_in_flight", ()] == 0
        assert found["rgalign_unknown_values_total", ()] == 5

    with_service(use)


def test_no_client_can_make_more_series(with_service: WithService) -> None:
    async def use(client: Any, service: Any, recommender: Any) -> None:
        async def ask(number: int) -> None:
            await client.request(f"METHOD{number}", f"/path/{number}")
            await client.post("/v1/recommend", json={"context": {}, "client": f"c{number}"})
            await client.post("/v1/recommend", json={"context": {f"f{number}": 1}, f"x{number}": 1})
            await client.get(f"/v1/intents?after={number}", headers={"x-request-id": f"r{number}"})

        await ask(0)
        names = set(series(service.meters.text()))
        for number in range(1, 30):
            await ask(number)
        assert set(series(service.meters.text())) == names

    with_service(use)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("rgalign.service.tracing.tracer", lambda: provider.get_tracer("tests"))
    return exporter


def test_a_span_each_request_and_one_each_stage(with_service: WithService, spans: InMemorySpanExporter) -> None:
    async def use(client: Any, service: Any, recommender: Any) -> None:
        parent = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
        await client.post("/v1/recommend", json={"context": {"note": "CANARY"}}, headers=parent)
        *stages, request = spans.get_finished_spans()
        assert request.name == "POST /v1/recommend"
        assert request.context.trace_id == int("ab" * 16, 16)
        assert request.parent.span_id == int("cd" * 8, 16)
        assert request.attributes["http.response.status_code"] == 200
        assert request.attributes["rgalign.bundle"] == "b" * 64
        assert [stage.name for stage in stages] == [f"rgalign.{n}" for n in ("tokenise", "queue", "reason", "rank")]
        assert {stage.parent.span_id for stage in stages} == {request.context.span_id}
        assert [round((s.end_time - s.start_time) / 1e6, 2) for s in stages] == [0.1, 0.2, 0.3, 0.1]
        spans.clear()
        await client.post("/v1/recommend", json={"context": {"do": "bug", "note": "CANARY"}})
        await client.get("/nothing/CANARY?CANARY")
        fault, unmatched = spans.get_finished_spans()
        assert (fault.attributes["rgalign.code"], unmatched.name) == ("internal", "GET unmatched")
        for span in (*stages, request, fault, unmatched):
            assert "CANARY" not in span.to_json()

    with_service(use)


@pytest.mark.parametrize(
    "header",
    [None, "", "00", f"01-{'a' * 32}-{'b' * 16}-01", f"00-{'0' * 32}-{'b' * 16}-01", f"00-{'a' * 32}-{'0' * 16}-01",
     f"00-{'A' * 32}-{'b' * 16}-01", f"00-{'a' * 31}-{'b' * 16}-01", f"00-{'a' * 32}-{'b' * 16}-01-x",
     f"00-{'٠' * 32}-{'b' * 16}-01", f"00-{'+' + 'a' * 31}-{'b' * 16}-01"],
)  # fmt: skip
def test_other_callers_are_nobody(header: str | None) -> None:
    assert caller(header) is None
    assert caller(f"00-{'a' * 32}-{'b' * 16}-01") is not None


def test_spans_are_written_as_lines(tmp_path: Path) -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(JsonLinesExporter(tmp_path / "spans.jsonl")))
    for name in ("a", "b"):
        provider.get_tracer("tests").start_span(name).end()
    provider.shutdown()
    lines = (tmp_path / "spans.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["a", "b"]


def test_a_log_line_has_an_exceptions_place_and_not_its_text() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("rgalign.service.tests")
    logger.addHandler(handler)
    logger.propagate = False
    try:
        raise ValueError("CANARY")
    except ValueError:
        logger.exception("what came")
    line = json.loads(stream.getvalue())
    assert (line["event"], line["level"], line["error"]) == ("what came", "error", "ValueError")
    assert line["frames"][0].startswith(__file__)
    assert "CANARY" not in stream.getvalue()


def test_fields_are_logged_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, LOG.name):
        log_event("request", request_id="x", ms=1.5)
    (record,) = caplog.records
    assert json.loads(JsonLines().format(record)).items() >= {"event": "request", "request_id": "x", "ms": 1.5}.items()
