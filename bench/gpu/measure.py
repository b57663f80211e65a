"""Times on a GPU: several calls in turn, between events, the device's own ceilings, and its power and clocks."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rgalign.bench.rows import in_turn, spread
from rgalign.kernels import int8_gemm_plan
from rgalign.kernels.quantize_rows import FP8

STATE = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")
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


def matrix_ceilings(device: str, size: int, with_fp8: bool) -> dict[str, float]:
    """Operations a second of the libraries' own products of random [size, size] matrices, by type."""
    g = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, device=device, generator=g).to(torch.bfloat16) for _ in range(2))
    eight = [torch.randint(-127, 128, (size, size), device=device, generator=g, dtype=torch.int8) for _ in range(2)]
    products: dict[str, Callable[[], Tensor]] = {
        "bf16": lambda: a @ b.T,
        "int8": lambda: torch._int_mm(eight[0], eight[1].T),
    }
    if with_fp8:
        codes, ones = [each.to(FP8) for each in (a, b)], torch.ones(size, 1, device=device)
        products["fp8"] = lambda: torch._scaled_mm(
            codes[0], codes[1].T, scale_a=ones, scale_b=ones.T, out_dtype=torch.bfloat16, use_fast_accum=True
        )
    found = microseconds(products, device)
    return {name: 2 * size**3 / (times["median"] * 1e-6) for name, times in found.items()}


def use_tiles(path: Path | None) -> None:
    """Reads the tiles of W8A8 products from another file than the committed table; None: from that."""
    if path is not None:
        int8_gemm_plan.TABLE = path
        int8_gemm_plan._table.cache_clear()


def has_fp8(device: str) -> bool:
    """Whether products of e4m3 are in the hardware; a CPU computes them for a dry run."""
    return device != "cuda" or torch.cuda.get_device_capability() >= (8, 9)


def gpu_state() -> dict[str, float | None] | None:
    """Clocks in MHz, power in W and temperature in °C at this moment; None where they cannot be read."""
    if not torch.cuda.is_available() or shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={','.join(STATE)}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    values = done.stdout.splitlines()[0].split(",") if done.returncode == 0 and done.stdout else []
    return {name: _number(value) for name, value in zip(STATE, values, strict=False)} or None


def _number(text: str) -> float | None:
    return float(text) if text.strip().replace(".", "", 1).isdigit() else None


class Rows:
    """A file of rows, each written and printed as it comes."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path

    def add(self, found: dict[str, Any], *shown: str) -> None:
        """Args: shown: keys to print."""
        with open(self._file, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(found) + "\n")
        print(found["benchmark"], *(found.get(key) for key in shown), flush=True)


def copy_bandwidth(device: str, size: int) -> float:
    """Bytes a second, read and written, of a copy of ``size`` bytes on the device."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found = microseconds({"copy": lambda: target.copy_(source)}, device)
    return 2 * size / (found["copy"]["median"] * 1e-6)
