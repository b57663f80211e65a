"""Made-up rows of every benchmark, in the form that the suites write."""

from typing import Any

import pytest

ENGINES = {"transformers fp32, whole prompt": 400.0, "transformers fp32": 200.0, "rgalign int8a12": 40.0}
LENGTHS = (16, 64, 256, 1_024)


def made(benchmark: str, **values: Any) -> dict[str, Any]:
    return {
        "file": f"{benchmark.split(':')[0].split()[0]}.jsonl",
        "benchmark": benchmark,
        **values,
        "hardware": {"cpu": "Made <up>", "cores": 2, "instructions": "avx2", "threads": 2, "gpu": None},
        "commit": "0123456789ab",
        "time": "2026-11-23T00:00:00+00:00",
    }


def around(median: float, share: float = 0.05) -> dict[str, float]:
    return {"median": median, "p20": median * (1 - share), "p80": median * (1 + share)}


def engine_rows() -> list[dict[str, Any]]:
    shape = {"model": "smollm2", "template": "paper", "threads": 2}
    rows = [
        made(
            "engine",
            variant=name,
            dtype="fp32",
            B=batch,
            **shape,
            turns=9,
            prompt_ms=around(ms),
            speedup=around(400 / ms),
            prompt_tokens_per_s=270_000 / ms,
            cosine={"mean": 1.0, "least": 0.9995},
        )
        for batch in (1, 16)
        for name, ms in ENGINES.items()
    ]
    steps = {"transformers, whole prompt": 400.0, "fused forward": 300.0, "prefix cached": 120.0, "8-bit weights": 40.0}
    return rows + [
        made("engine waterfall", step=step, place=place, B=4, **shape, prompt_ms=around(ms))
        for place, (step, ms) in enumerate(steps.items())
    ]


def growing_rows() -> list[dict[str, Any]]:
    rows = [
        made(
            "machine peaks",
            threads=2,
            gflop_per_s={"sgemm": 130.0, "fp32_registers": 150.0, "int8_registers": 190.0},
            copy_gb_per_s=20.0,
        )
    ]
    for tokens in LENGTHS:
        for name, ms in ENGINES.items():
            cost = ms / 100 * tokens
            rows.append(
                made(
                    "scaling: length",
                    variant=name,
                    T=tokens,
                    threads=2,
                    calls=20,
                    call_ms=around(cost),
                    gflop=0.2 * tokens,
                    gflop_per_s=around(200 * tokens / cost),
                    weight_bytes=106_000_000,
                )
            )
    for size in (1_000, 10_000, 100_000):
        for name, us in (("rgalign int8", 0.01), ("torch", 0.05)):
            rows += [
                made(
                    "scaling: catalogue",
                    variant=name,
                    N=size,
                    D=64,
                    B=1,
                    k=3,
                    threads=2,
                    calls=50,
                    call_us=around(5 + us * size),
                ),
                made(
                    "scoring",
                    variant=name,
                    N=size,
                    D=128,
                    B=1,
                    k=3,
                    threads=2,
                    catalogue="random",
                    calls=50,
                    call_us=around(5 + 2 * us * size),
                ),
            ]
    for batch in (1, 4, 16):
        rows.append(
            made(
                "scaling: batch",
                variant="rgalign int8a12",
                B=batch,
                template="paper",
                threads=2,
                calls=9,
                computed_tokens=100 * batch,
                call_ms=around(40.0 * batch),
            )
        )
    return rows


def other_rows() -> list[dict[str, Any]]:
    rows = []
    for sessions in (10_000, 100_000):
        rows += [
            made(
                "data: simulate",
                variant="rgalign",
                sessions=sessions,
                workers=2,
                seconds=sessions / 20_000,
                sessions_per_s=20_000.0,
                repeats=1,
            ),
            made(
                "data: encode",
                variant="rgalign, by columns",
                sessions=sessions,
                seconds=around(sessions / 9_000),
                sessions_per_s=around(9_000.0),
                repeats=3,
            ),
            made(
                "data: encode",
                variant="one session at a time",
                sessions=sessions,
                seconds=around(1.0),
                sessions_per_s=around(64.0),
                repeats=3,
            ),
            made("data: embedding work", variant="rgalign", sessions=sessions, computed_tokens=60 * sessions),
        ]
    for service, factor in (("rgalign", 4.0), ("fastapi + transformers + faiss", 1.0)):
        for share in (0.5, 0.8, 1.0):
            rows.append(
                made(
                    "end_to_end",
                    service=service,
                    template="paper",
                    rate=factor * share * 3,
                    promised_p99_ms=300.0 / (1.1 - share),
                    p99_interval_ms=[200.0, None],
                    latency_ms={"p50": 120.0, "p90": 200.0, "p99": 300.0},
                )
            )
    rows.append(made("end_to_end verdict", template="paper", capacity_ratio=4.0))
    for name, us in (("rgalign submit", 5.0), ("asyncio.Queue", 25.0)):
        rows.append(
            made(
                "batcher cost",
                variant=name,
                requests=40_000,
                cpu_us_per_request=around(us),
                repeats=7,
                requests_per_s=around(1e6 / us),
            )
        )
    rows.append(
        made(
            "batcher overload",
            factor=2.0,
            accepted_ms={"p50": 100.0, "p99": 190.0},
            goodput_share=0.98,
            lost=0,
            duplicated=0,
        )
    )
    for batch in (1, 16):
        rows += [
            made(
                "tokenizer",
                variant="rgalign, slots only",
                template="paper",
                B=batch,
                calls=9,
                call_ms=around(0.4 * batch),
            ),
            made("towers", variant="rgalign, served", B=batch, intents=1_000, calls=9, call_ms=around(3.0 * batch)),
            made("topk", variant="torch", N=5_000, B=batch, k=3, threads=2, calls=9, call_us=around(40.0 * batch)),
            made(
                "train steps",
                variant="rgalign qe_rec",
                batch=64 * batch,
                intents=1_000,
                repeats=5,
                call_ms=around(50.0 * batch),
                sessions_per_s=around(1_280.0),
            ),
            made(
                "alignment step",
                variant="rgalign",
                rows=8 * batch,
                dtype="bfloat16",
                call_ms=around(500.0 * batch),
                sessions_per_s=around(16.0),
            ),
        ]
    rows.append(
        made(
            "embed",
            variant="padded batches, nothing shared",
            model="SmolLM2-135M",
            dtype="float32",
            prompts=24,
            prompts_per_s=around(1.2),
        )
    )
    rows.append(
        made(
            "loadgen",
            target="http",
            arrivals="poisson",
            note="",
            rate=5.0,
            latency_ms={"p50": 100.0, "p99": 240.0},
            requests=100,
            outcomes={"ok": 90, "degraded": 10},
        )
    )
    return rows


@pytest.fixture
def made_rows() -> list[dict[str, Any]]:
    return [*engine_rows(), *growing_rows(), *other_rows()]
