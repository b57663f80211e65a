"""Result rows: one JSON object a line in bench/results/, with all that is needed to read a number later."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"


def in_turn(variants: Mapping[str, Callable[[], Any]], repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of each call, the variants timed in turn (A B C A B C ...): machines drift, ratios hold."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(warmup + repeats):
        for name, call in variants.items():
            began = time.perf_counter()
            call()
            if repeat >= warmup:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Median with 20th and 80th percentile."""
    low, median, high = np.percentile(values, [20, 50, 80])
    return {name: round(float(value), digits) for name, value in (("median", median), ("p20", low), ("p80", high))}


def hardware() -> dict[str, Any]:
    names = [line.split(":")[1].strip() for line in _cpu_lines("model name")]
    flags = set(next(iter(_cpu_lines("flags")), ": ").split(":")[1].split())
    best = next((flag for flag in ("amx_int8", "avx512_vnni", "avx512f", "avx2") if flag in flags), "baseline")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "instructions": best,
        "threads": torch.get_num_threads(),
        "clock_mhz": _clock_mhz(),
        "load_1min": round(os.getloadavg()[0], 2),
        "gpu": gpu,
    }


def row(benchmark: str, **values: Any) -> dict[str, Any]:
    return {
        "benchmark": benchmark,
        **values,
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "commit": _commit(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def append(file: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / file
    with open(path, "a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(each) + "\n" for each in rows)
    return path


def _cpu_lines(key: str) -> list[str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [line for line in lines if line.startswith(key)]


def _clock_mhz() -> int | None:
    """Of all cores at this moment, on average; None where the kernel does not tell."""
    clocks = [float(line.split(":")[1]) for line in _cpu_lines("cpu MHz")]
    return round(float(np.mean(clocks))) if clocks else None


def _commit() -> str:
    """Of the working tree; ``RGALIGN_COMMIT`` says it of a copy without one."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    if given := os.environ.get("RGALIGN_COMMIT"):
        return given
    if shutil.which("git") is None:
        return "none"
    dirty = "+" if git("status", "--porcelain", "--", "rgalign", "training", "kernels", "csrc", "bench/*.py") else ""
    return (git("rev-parse", "--short=12", "HEAD") or "none") + dirty
