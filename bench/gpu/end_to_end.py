"""Requests to winners on a GPU: the C++ batcher, the engine's graphs and the fused scorer behind them, under load.

    python -m rgalign.bench.gpu.end_to_end --out DIR [--seconds 90] [--tiles FILE] [--dry]      (bench/gpu/run.sh)

A request is a prompt's token ids and its session's user vector; its answer is the k best of the catalogue. Tokenising
and the user tower are the host's and are not in it (docs/performance.md). Latency counts from the scheduled arrival.
Rows in DIR/end_to_end.jsonl, ``gpu end to end``, for each type with a cached prefix and without:

``as many as it answers``   every request waits at the beginning: the rate that the GPU sustains
``poisson``                 50 requests a second, then shares of that rate

The extension ``rgalign._C`` must be built; Qwen3-4B's shapes, random weights. Every request ends exactly once, or the
run is wrong. ``--dry``: tiny sizes, in Triton's interpreter where there is no GPU; times mean nothing.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rgalign import _C
from rgalign.bench.gpu.check import DIM, INTENTS, K, dtypes, kernels_of, prompts_of
from rgalign.bench.gpu.decoders import QWEN3_4B, TINY, Ends, engine_decoder, random_ends
from rgalign.bench.gpu.measure import Rows, gpu_state, use_tiles
from rgalign.bench.rows import row
from rgalign.index.precision import encode
from rgalign.kernels.score_reference import Projection, unit
from rgalign.reasoner.engine.cuda.matrix import CudaDtype
from rgalign.reasoner.engine.cuda.pack import Ints
from rgalign.reasoner.engine.cuda.runner import SEQUENCE_TOKENS, TOKEN_BUCKETS, Head, Runner, Usage
from rgalign.reasoner.engine.decoder_config import DecoderConfig


@dataclass(frozen=True)
class Plan:
    """Args:
    lengths: shortest and longest prompt, with a cached prefix of so many tokens: (prefix, shortest, longest).
    rate, seconds: of the Poisson arrivals that are tried first; shares: of the sustained rate, after them.
    waiting: requests at the beginning of ``as many as it answers``; they may take PATIENCE_MS.
    """

    buckets: tuple[int, ...]
    lengths: tuple[tuple[int, int, int], ...]
    rate: float
    seconds: float
    shares: tuple[float, ...]
    waiting: int
    deadline_ms: float


PLAN = Plan(TOKEN_BUCKETS, ((180, 120, 220), (0, 300, 400)), 50, 8, (0.8, 0.95), 2_000, 1_500)
DRY_PLAN = Plan((32,), ((5, 6, 12),), 4, 1, (0.8,), 4, 60_000)
PATIENCE_MS = 60_000.0
ORDER: tuple[CudaDtype, ...] = ("int8", "fp8", "bf16")


def limits(plan: Plan) -> dict[str, Any]:
    """What ``rgalign.batcher.BatcherConfig(...).limits()`` is, on a machine that has no pydantic."""
    most = plan.buckets[-1]
    return {
        "max_rows": most // SEQUENCE_TOKENS,
        "max_tokens": most,
        "max_request_tokens": min(512, most),
        "token_buckets": plan.buckets,
        "row_buckets": (),
        "max_waste": 0.25,
        "max_passes": 4,
        "max_queue": 1 << 20,
        "queue_limit": 1 << 20,
        "deadline_ms": plan.deadline_ms,
        "slack_ms": 100.0,
        "max_per_client": 0,
        "bulk_every": 8,
        "num_workers": 1,
        "padded": False,
    }


@dataclass
class Answers:
    """When each request was to arrive, was handed over and was answered, in seconds; how it ended (-1: it has not)."""

    count: int
    scheduled: NDArray[np.float64] = field(init=False)
    submitted: NDArray[np.float64] = field(init=False)
    answered: NDArray[np.float64] = field(init=False)
    outcome: NDArray[np.int64] = field(init=False)
    winners: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scheduled, self.submitted, self.answered = np.zeros((3, self.count))
        self.outcome = np.full(self.count, -1)

    def end(self, tag: int, outcome: int) -> None:
        if self.outcome[tag] >= 0:
            raise SystemExit(f"wrong: request {tag} ended twice")
        self.outcome[tag], self.answered[tag] = outcome, time.perf_counter()


class Served:
    """A runner behind the batcher core, with one thread that calls it and one that hears of deadlines."""

    def __init__(self, plan: Plan, runner: Runner, answers: Answers) -> None:
        settings = limits(plan)
        self.core = _C.Batcher(**settings, pad_token=0, first_position=runner.prefix_length)
        self.rows = 0
        self.batches = 0
        self.error: BaseException | None = None
        self._runner, self._answers = runner, answers
        self._user = unit(torch.randn(1024, DIM, generator=torch.Generator().manual_seed(9))).numpy()
        sizes = (settings["max_tokens"], settings["max_tokens"], settings["max_rows"] + 1)
        self._buffers = [np.zeros(size, np.int32) for size in sizes]
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._work, self._hear)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Returns when all are answered. Raises SystemExit: the runner raised."""
        self.core.close(PATIENCE_MS)
        for thread in self._threads:
            thread.join()
        if self.error is not None:
            raise SystemExit("wrong: the runner raised") from self.error

    def _work(self) -> None:
        try:
            self._answer_batches()
        except BaseException as error:
            self.error = error

    def _answer_batches(self) -> None:
        token_ids, _, cu_seqlens = self._buffers
        while (taken := self.core.take(0, *self._buffers)) is not None:
            tags, (count, *_) = taken
            prompts = [token_ids[cu_seqlens[i] : cu_seqlens[i + 1]] for i in range(count)]
            user, omega = self._user[np.asarray(tags) % len(self._user)], np.full(count, 0.5, np.float32)
            found = self._runner.run(prompts, user, omega, states=False).winners
            assert found is not None
            won = self.core.finish(0, np.zeros(count, np.uint8))
            for tag, is_answer, best in zip(tags, won, found.rows.tolist(), strict=True):
                if is_answer:
                    self._answers.winners[tag] = best
                    self._answers.end(tag, 0)
            self.rows, self.batches = self.rows + count, self.batches + 1

    def _hear(self) -> None:
        while (ended := self.core.wait_answers()) is not None:
            for tag, outcome in ended:
                self._answers.end(tag, outcome)


def run_load(
    plan: Plan, runner: Runner, prompts: list[Ints], arrivals: NDArray[np.float64], deadline_ms: float
) -> tuple[Answers, Served]:
    """Args: arrivals: seconds from the beginning, ascending.

    Raises:
        SystemExit: a request that did not end once.
    """
    answers = Answers(len(arrivals))
    served = Served(plan, runner, answers)
    began = time.perf_counter() + 0.01
    for tag, at in enumerate(arrivals):
        answers.scheduled[tag] = began + at
        if (wait := began + at - time.perf_counter()) > 0:
            time.sleep(wait)
        answers.submitted[tag] = time.perf_counter()
        refused = served.core.submit(tag, prompts[tag % len(prompts)], deadline_ms, 0, False)
        if isinstance(refused, tuple):
            answers.end(tag, refused[0])
    served.close()
    if (answers.outcome < 0).any():
        raise SystemExit(f"wrong: {int((answers.outcome < 0).sum())} requests never ended")
    return answers, served


def described(answers: Answers, served: Served, usage: Usage) -> dict[str, Any]:
    whole = answers.outcome == 0
    took = 1e3 * (answers.answered - answers.scheduled)[whole]
    late = 1e3 * (answers.submitted - answers.scheduled)
    seconds = answers.answered.max() - answers.scheduled.min()
    p50, p99, most = np.percentile(took, [50, 99, 100]) if len(took) else (np.nan,) * 3
    return {
        "requests": answers.count,
        "answered": int(whole.sum()),
        "requests_per_s": round(float(whole.sum() / seconds), 2),
        "latency_ms": {"p50": round(float(p50), 3), "p99": round(float(p99), 3), "max": round(float(most), 3)},
        "generator_late_ms_p99": round(float(np.percentile(late, 99)), 3),
        "rows_per_batch": round(served.rows / max(1, served.batches), 2),
        "replay_share": round(usage.replay_share, 4),
        "padding_share": round(usage.padding_share, 4),
    }


def loads(plan: Plan, runner: Runner, prompts: list[Ints], limit: float) -> Iterator[dict[str, Any]]:
    """One row's values for each load; none is begun after ``limit`` on the clock."""
    rng = np.random.default_rng(11)

    def measured(times: NDArray[np.float64], deadline_ms: float, **named: Any) -> dict[str, Any]:
        runner.usage = Usage()
        return {**named, **described(*run_load(plan, runner, prompts, times, deadline_ms), runner.usage)}

    def poisson(rate: float, seconds: float) -> NDArray[np.float64]:
        return np.cumsum(rng.exponential(1 / rate, max(2, int(rate * seconds))))

    run_load(plan, runner, prompts, np.zeros(min(64, plan.waiting)), PATIENCE_MS)  # warm
    yield measured(poisson(plan.rate, plan.seconds), plan.deadline_ms, arrivals="poisson", rate=plan.rate)
    full = measured(np.zeros(plan.waiting), PATIENCE_MS, arrivals="as many as it answers", rate=None)
    yield full
    for share in plan.shares:
        if time.monotonic() < limit:
            rate = share * full["requests_per_s"]
            times = poisson(rate, plan.seconds / 2)
            yield measured(times, plan.deadline_ms, arrivals="poisson", rate=round(rate, 1), factor=share)


def head_of(config: DecoderConfig, device: str, intents: int) -> Head:
    g = torch.Generator().manual_seed(10)
    vectors, scales = encode(unit(torch.randn(intents, DIM, generator=g)), "float16")
    weight = torch.randn(DIM, config.hidden, generator=g) / config.hidden**0.5
    return Head(Projection(weight.to(device), torch.zeros(DIM, device=device)), vectors.to(device), scales, K)


def measure(
    config: DecoderConfig, ends: Ends, dtype: CudaDtype, plan: Plan, device: str, limit: float
) -> Iterator[dict[str, Any]]:
    intents = INTENTS if device == "cuda" else 40
    runner = Runner(
        engine_decoder(config, ends, dtype), token_buckets=plan.buckets, head=head_of(config, device, intents)
    )
    for before, shortest, longest in plan.lengths:
        if time.monotonic() > limit:
            return
        (prefix,) = prompts_of([before], config.vocabulary, 12)
        lengths = np.random.default_rng(13).integers(shortest, longest + 1, 256)
        runner.set_prefix(prefix)
        began = time.perf_counter()
        runner.warm_up()
        warm_up_seconds = round(time.perf_counter() - began, 2)
        for found in loads(plan, runner, prompts_of(lengths.tolist(), config.vocabulary, 14), limit):
            yield {
                "variant": f"rgalign {dtype}",
                "dtype": dtype,
                "tokens": (shortest + longest) // 2,
                "prefix_tokens": before,
                "intents": intents,
                "warm_up_seconds": warm_up_seconds,
                **found,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=90, help="no further load is begun after this long")
    parser.add_argument("--tiles", type=Path, help="of gpu.tune, in place of the committed table")
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    limit = time.monotonic() + arguments.seconds
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not arguments.dry:
        raise SystemExit("no GPU: only --dry runs here")
    use_tiles(arguments.tiles)
    rows = Rows(arguments.out / "end_to_end.jsonl")
    config, plan = (TINY, DRY_PLAN) if arguments.dry else (QWEN3_4B, PLAN)
    model = "tiny, random weights" if arguments.dry else "Qwen3-4B shapes, random weights"
    with kernels_of(device):
        ends = random_ends(config, device)
        for dtype in (each for each in ORDER if each in dtypes(device)):
            if arguments.dry and dtype != "int8":
                continue
            for found in measure(config, ends, dtype, plan, device, limit):
                each = row("gpu end to end", model=model, **found, gpu_state=gpu_state(), dry=arguments.dry)
                rows.add(each, "variant", "prefix_tokens", "arrivals", "rate", "requests_per_s", "latency_ms")


if __name__ == "__main__":
    main()
