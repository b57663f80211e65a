"""Times on a GPU: several calls in turn, between events, and the device's own copy bandwidth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from rgalign.bench.rows import in_turn, spread

SECONDS_EACH = 0.4  # of timed calls, for each variant
MAX_REPEATS = 200


def in_graph(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call captured once; what is returned replays it."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def microseconds(calls: Mapping[str, Callable[[], Any]], device: str) -> dict[str, dict[str, float]]:
    """Median, 20th and 80th percentile of each call, timed in turn: machines drift, ratios hold."""
    if device != "cuda":
        return {name: spread([1e6 * value for value in times], 2) for name, times in in_turn(calls, 2).items()}
    for call in calls.values():
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    slowest = max(_events(call) for call in calls.values())
    repeats = int(min(MAX_REPEATS, max(10, SECONDS_EACH * 1e6 / slowest)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(_events(call))
    return {name: spread(values, 2) for name, values in times.items()}


def _events(call: Callable[[], Any]) -> float:
    """Microseconds on the device. During the pause the CPU queues the whole call, so its own time is not counted."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda._sleep(200_000)  # type: ignore[no-untyped-call]
    begin.record()
    call()
    end.record()
    end.synchronize()
    return 1000 * float(begin.elapsed_time(end))


def copy_bandwidth(device: str, size: int) -> float:
    """Bytes a second, read and written, of a copy of ``size`` bytes on the device."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found = microseconds({"copy": lambda: target.copy_(source)}, device)
    return 2 * size / (found["copy"]["median"] * 1e-6)
