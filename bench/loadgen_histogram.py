"""A run's latencies as HdrHistogram files, which its tools in every language read: microseconds, three digits."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogWriter

from rgalign.bench.loadgen_ledger import Ledger

LOWEST_US, HIGHEST_US, DIGITS = 1, 3_600_000_000, 3
US_IN_MS, US_IN_S = 1_000, 1_000_000
TICKS_PER_HALVING = 10


def histogram_of(latencies_ms: Iterable[float]) -> HdrHistogram:
    histogram = HdrHistogram(LOWEST_US, HIGHEST_US, DIGITS)
    for latency_ms in latencies_ms:
        histogram.record_value(max(LOWEST_US, round(latency_ms * US_IN_MS)))
    return histogram


def percentiles(histogram: HdrHistogram) -> list[tuple[float, float]]:
    """(percentile, milliseconds), rising; empty of an empty histogram."""
    steps = histogram.get_percentile_iterator(TICKS_PER_HALVING)
    return [(float(step.percentile_level_iterated_to), step.value_iterated_to / US_IN_MS) for step in steps]


def write_histograms(ledger: Ledger, out: Path) -> HdrHistogram:
    """``latency.hgrm``: percentiles of all answers, in milliseconds; ``latency.hlog``: a histogram a second of
    scheduled arrivals. Returns the one of all answers.
    """
    whole = histogram_of(each.latency_ms for each in ledger.answered)
    with open(out / "latency.hgrm", "wb") as file:
        whole.output_percentile_distribution(file, US_IN_MS, TICKS_PER_HALVING)
    with open(out / "latency.hlog", "w", encoding="utf-8") as log:
        writer = HistogramLogWriter(log)
        writer.output_comment("[latency of the answers in microseconds, from their scheduled arrivals]")
        writer.output_log_format_version()
        writer.output_legend()
        seconds = range(int(max((each.scheduled_s for each in ledger.ended), default=-1.0)) + 1)
        for second in seconds:
            inside = (each.latency_ms for each in ledger.answered if second <= each.scheduled_s < second + 1)
            interval = histogram_of(inside)
            interval.set_start_time_stamp(second * 1_000)
            interval.set_end_time_stamp((second + 1) * 1_000)
            writer.output_interval_histogram(interval, max_value_unit_ratio=US_IN_S)
    return whole
