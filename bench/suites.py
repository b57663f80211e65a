"""The suites: which scripts each is made of, what they are asked for at each effort, and running them.

A suite is a list of steps, a step one command `python -m rgalign.bench.MODULE … --out FILE` that checks what it times,
times its variants in turn and writes result rows. A step writes to a file of its own, which is appended to
bench/results/ when the command has ended well: a step that was interrupted or failed leaves nothing there. What is done
is written down with a hash of the sources, and is not done again for the same sources.

quick      does everything run? minutes for all, rows go to build/bench/quick/ and say nothing about speed
standard   what `make bench` runs: under half an hour on two cores
full       for committed rows: every cell, and the engine's peers in an environment of their own
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rgalign.bench.rows import RESULTS, ROOT
from rgalign.errors import ConfigError
from rgalign.files import write_atomic

Effort = Literal["quick", "standard", "full"]
WORK = ROOT / "build" / "bench"
SOURCES = ("rgalign", "bench", "training", "kernels", "csrc")
SUFFIXES = (".py", ".cpp", ".h", ".yaml")
TAIL = 15  # lines of a failed command that are shown


@dataclass(frozen=True)
class Step:
    """One command and its arguments at each effort; ``file`` of the results its rows are for.

    ``quick`` or ``full`` None: as ``standard``.
    """

    name: str
    module: str
    file: str
    standard: tuple[str, ...] = ()
    quick: tuple[str, ...] | None = None
    full: tuple[str, ...] | None = None

    def arguments(self, effort: Effort) -> tuple[str, ...]:
        chosen = {"quick": self.quick, "standard": self.standard, "full": self.full}[effort]
        return self.standard if chosen is None else chosen


@dataclass(frozen=True)
class Suite:
    about: str
    steps: tuple[Step, ...]


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SUITES: Mapping[str, Suite] = {
    "kernels": Suite(
        "what the machine can do, and exact top-k beside torch and NumPy",
        (
            Step("kernels", "kernels_work", "kernels.jsonl", quick=words("--sizes 2000 --batches 1 4 --seconds 0.2")),
        ),
    ),
    "scoring": Suite(
        "the CPU scorer beside torch, torch.compile, FAISS, hnswlib and NumPy",
        (
            Step(
                "grid", "scoring", "scoring.jsonl",
                words("--sizes 1000 5000 100000 --batches 1 32 --dims 128 --seconds 3"),
                words("--sizes 2000 --batches 1 --dims 64 --seconds 0.2 --skip torch.compile"),
                (),
            ),
            Step(
                "from latents", "scoring", "scoring.jsonl",
                words("--projection 576 --sizes 5000 --batches 1 32 --dims 128 --seconds 3"),
                words("--projection 64 --sizes 2000 --batches 1 --dims 64 --seconds 0.2 --skip torch.compile"),
                words("--projection 576 --sizes 5000 100000 --batches 1 32 --dims 128 --seconds 10"),
            ),
        ),
    ),
    "engine": Suite(
        "the reasoner's engine beside transformers, and with --full ONNX Runtime and OpenVINO; its waterfall",
        (
            Step(
                "engine", "engine", "engine.jsonl",
                words("--quick"),
                words("--quick --batches 1 --prompts 4 --only waterfall"),
                words(f"--peers {WORK / 'engine-peers'}"),
            ),
        ),
    ),
    "batcher": Suite(
        "the batcher's cost beside an asyncio.Queue, overload, and deadlines while the model hangs",
        (
            Step("cost", "batcher", "batcher.jsonl", ("cost",), words("cost --requests 2000 --repeats 3")),
            Step("overload", "batcher", "batcher.jsonl", ("overload",), words("overload --seconds 2 --factors 2"),
                 words("overload --seconds 60")),
            Step("hung", "batcher", "batcher.jsonl", ("hung",), words("hung --requests 100")),
        ),
    ),
    "tokenizer": Suite(
        "contexts to token ids beside the whole prompt through the transformers tokenizer",
        (Step("tokenizer", "tokenizer_work", "tokenizer.jsonl", quick=words("--batches 4 --seconds 0.2")),),
    ),
    "towers": Suite(
        "towers and scoring as they are served beside the whole ranker in eager torch",
        (Step("towers", "towers_work", "towers.jsonl", quick=words("--batches 1 4 --seconds 0.2 --intents 400")),),
    ),
    "end_to_end": Suite(
        "the HTTP service beside a plain FastAPI, transformers and FAISS service at rising load",
        (
            Step(
                "services", "end_to_end", "end_to_end.jsonl",
                (*words("--templates paper --shares 0.5 0.8 1.0 --seconds 12 --requests 40 --capacity-seconds 12"),
                 "--checked", "8", "--plot", str(WORK / "end_to_end.png")),
                ("--quick",),
                (),
            ),
        ),
    ),
    "capacity": Suite(
        "the capacity planner's p50 and p99 beside real runs with the same arrivals",
        (Step("validation", "planner_validation", "planner.jsonl", words("--seconds 20 --shares 0.5"),
              words("--seconds 2 --shares 0.3"), words("--seconds 60")),),
    ),
    "training": Suite(
        "optimiser steps of the rankers over the batch size; alignment steps of the reasoner beside TRL's",
        (
            Step("steps", "training_work", "training.jsonl", quick=words("--batches 32 64 --repeats 2 --sessions 400")),
            Step("alignment", "alignment_work", "alignment.jsonl", words("--rows 8 --repeats 3"),
                 words("--rows 2 --layers 2 --vocabulary 512 --repeats 2"), words("--rows 1 8 24")),
        ),
    ),
    "data": Suite(
        "simulated sessions and their encoding over the number of sessions; embedding with and without sharing",
        (
            Step("sessions", "data_work", "data.jsonl", words("--sessions 10000 100000 300000"),
                 words("--sessions 500 --repeats 1"), words("--sessions 10000 100000 1000000")),
            Step("embed", "throughput", "throughput.jsonl", words("--only simulate embed --repeats 3"),
                 words("--only simulate --sessions 500 --repeats 1"), words("--sessions 400000")),
        ),
    ),
    "scaling": Suite(
        "cost over prompt length, batch, catalogue and cores, for fitted exponents and the roofline",
        (
            Step("length", "scaling_work", "scaling.jsonl", words("length --seconds 2"),
                 words("length --values 8 16 --seconds 0.2"),
                 words("length --seconds 20")),
            Step("batch", "scaling_work", "scaling.jsonl", words("batch --values 1 2 4 --seconds 2"),
                 words("batch --values 1 2 --seconds 0.2"),
                 words("batch --seconds 20")),
            Step("catalogue", "scaling_work", "scaling.jsonl", words("catalogue --seconds 2"),
                 words("catalogue --values 1000 2000 --seconds 0.2"), words("catalogue --seconds 10")),
            Step("cores", "scaling_work", "scaling.jsonl", words("cores --seconds 2"), words("cores --seconds 0.2"),
                 words("cores --seconds 20")),
        ),
    ),
}  # fmt: skip


def chosen(names: Sequence[str]) -> list[str]:
    """The suites of these names, ``all`` for every one.

    Raises:
        ConfigError: no name, or one that no suite has.
    """
    if not names:
        raise ConfigError(where="bench run", required=f"suites: all, {', '.join(SUITES)}", received="none")
    unknown = [name for name in names if name not in SUITES and name != "all"]
    if unknown:
        raise ConfigError(where="bench run", required=f"suites: all, {', '.join(SUITES)}", received=unknown[0])
    return [name for name in SUITES if name in names or "all" in names]


def missing(suite: Suite) -> list[str]:
    """Modules of its steps that this checkout does not have."""
    return sorted({step.module for step in suite.steps if not (ROOT / "bench" / f"{step.module}.py").is_file()})


# ---- running ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where runs leave things: rows of a finished step in ``results``, all else in ``work``."""

    results: Path = RESULTS
    work: Path = WORK

    @property
    def done_file(self) -> Path:
        return self.work / "done.json"

    def done(self) -> dict[str, Any]:
        """What is finished, by suite, step and effort."""
        if not self.done_file.is_file():
            return {}
        found: dict[str, Any] = json.loads(self.done_file.read_text(encoding="utf-8"))
        return found

    def note_done(self, name: str, what: Mapping[str, Any]) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        write_atomic(self.done_file, json.dumps({**self.done(), name: dict(what)}, indent=2).encode())


@dataclass(frozen=True)
class Outcome:
    """Of a step. ``rows`` None: it was done before. ``error``: the end of what a failed command said."""

    name: str
    seconds: float
    rows: int | None
    error: str | None = None


Tell = Callable[[str], None]


def run_suites(
    names: Sequence[str], effort: Effort, tell: Tell, *, again: bool = False, place: Place | None = None
) -> list[Outcome]:
    """Runs the steps one after the other; a failed one does not keep the next from running.

    Args:
        again: also what is done.
        tell: is given every line of progress.
    """
    place = place or Place()
    found, sources = [], source_hash()
    steps = [(name, step) for name in chosen(names) for step in SUITES[name].steps]
    for number, (suite, step) in enumerate(steps, 1):
        tell(f"[{number}/{len(steps)}] {suite}: {step.name}")
        found.append(run_step(suite, step, effort, sources, tell, again=again, place=place))
        tell(said(found[-1]))
    return found


def said(outcome: Outcome) -> str:
    if outcome.error is not None:
        return f"  failed after {outcome.seconds:.0f} s:\n{outcome.error}"
    if outcome.rows is None:
        return "  done before, from the same sources (--again measures it again)"
    return f"  {outcome.rows} rows in {outcome.seconds:.0f} s"


def run_step(suite: str, step: Step, effort: Effort, sources: str, tell: Tell, *, again: bool, place: Place) -> Outcome:
    name = f"{suite}/{step.name}/{effort}"
    arguments = list(step.arguments(effort))
    identity = {"module": step.module, "arguments": arguments, "sources": sources}
    before = place.done().get(name)
    if before is not None and not again and all(before.get(key) == value for key, value in identity.items()):
        return Outcome(name, 0.0, None)
    part = place.work / "parts" / f"{suite}-{step.name.replace(' ', '-')}-{effort}.jsonl"
    part.parent.mkdir(parents=True, exist_ok=True)
    part.unlink(missing_ok=True)
    began = time.perf_counter()
    error = execute([sys.executable, "-m", f"rgalign.bench.{step.module}", *arguments, "--out", str(part)], tell)
    seconds = time.perf_counter() - began
    rows = part.read_bytes() if part.is_file() else b""
    if error is None and not rows:
        error = f"  rgalign.bench.{step.module} ended well but wrote no row"
    if error is not None:
        return Outcome(name, seconds, 0, error)
    keep(rows, (place.work / "quick" if effort == "quick" else place.results) / step.file)
    place.note_done(name, {**identity, "seconds": round(seconds, 1), "at": now(), "rows": rows.count(b"\n")})
    return Outcome(name, seconds, rows.count(b"\n"))


def execute(command: Sequence[str], tell: Tell) -> str | None:
    """Runs a command, tells its lines; None, or the end of what it said if it failed."""
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1", "COLUMNS": "160"}
    last: deque[str] = deque(maxlen=TAIL)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last.append(line.rstrip())
            tell(f"  {last[-1]}")
    if process.returncode == 0:
        return None
    return "\n".join([f"  exit code {process.returncode}: {' '.join(command)}", *(f"  {line}" for line in last)])


def keep(rows: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as stream:
        stream.write(rows)
        stream.flush()
        os.fsync(stream.fileno())


def source_hash() -> str:
    """Of everything that decides what is measured."""
    found = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SUFFIXES and path.is_file():
                found.update(f"{path.relative_to(ROOT)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:16]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
