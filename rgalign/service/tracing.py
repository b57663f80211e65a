"""OpenTelemetry spans: one a request, and under a recommendation one a stage. Attributes hold no context and no text.

Where no tracer provider is set these calls do nothing. `rgalign serve --trace-file` sets one that writes JSON lines;
nothing here opens a connection.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags, Tracer

from rgalign.service.face import Recommendation

HEX = frozenset("0123456789abcdef")
LENGTHS = (2, 32, 16, 2)  # version, trace id, span id, flags


def tracer() -> Tracer:
    return trace.get_tracer("rgalign.service")


def start_span(name: str, traceparent: str | None) -> Span:
    """A server span, under the caller's if ``traceparent`` (W3C) names one."""
    return tracer().start_span(name, context=caller(traceparent), kind=SpanKind.SERVER)


def caller(traceparent: str | None) -> Context | None:
    """None for anything but a well-formed header of version 00."""
    parts = (traceparent or "").split("-")
    if tuple(map(len, parts)) != LENGTHS or not all(set(part) <= HEX for part in parts) or parts[0] != "00":
        return None
    trace_id, span_id, flags = (int(part, 16) for part in parts[1:])
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
    return trace.set_span_in_context(NonRecordingSpan(context)) if context.is_valid else None


def trace_stages(span: Span, answer: Recommendation) -> None:
    """The stages one after the other, ending now; the user tower runs beside the reasoner and is not shown."""
    if not span.is_recording():
        return
    span.set_attributes(
        {
            "rgalign.bundle": answer.bundle,
            "rgalign.generation": answer.generation,
            "rgalign.degraded": answer.degraded or "no",
        }
    )
    timings = answer.timings
    parent = trace.set_span_in_context(span)
    at = time.time_ns() - int(timings.total_ms * 1e6)
    for stage in ("tokenise", "queue", "reason", "rank"):
        until = at + int(getattr(timings, f"{stage}_ms") * 1e6)
        tracer().start_span(f"rgalign.{stage}", context=parent, start_time=at).end(until)
        at = until


def end_span(span: Span, route: str, method: str, status: int, code: str) -> None:
    if span.is_recording():
        span.set_attributes(
            {
                "http.route": route,
                "http.request.method": method,
                "http.response.status_code": status,
                "rgalign.code": code,
            }
        )
    span.end()


class JsonLinesExporter(SpanExporter):
    """Appends spans to a file, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by shutdown

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            self._file.write(json.dumps(json.loads(span.to_json(indent=None))) + "\n")
        self._file.flush()
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._file.close()


def trace_to(path: Path) -> TracerProvider:
    """Makes ``path`` where the process's spans go. Call ``shutdown`` on what it returns at the end."""
    provider = TracerProvider(resource=Resource({"service.name": "rgalign"}))
    provider.add_span_processor(BatchSpanProcessor(JsonLinesExporter(path)))
    trace.set_tracer_provider(provider)
    return provider
