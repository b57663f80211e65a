"""rgalign.cpu_scorer against its definition in float64, and its promises: the same bits any way, refusals, the GIL."""

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rgalign.cpu_scorer import INSTRUCTION_SETS, CpuIndex, CpuScores, cpu_score
from rgalign.errors import DataError
from rgalign.models.ranker import Ranker, Scores

TOLERANCE = 2e-6  # largest error of a float32 score of unit vectors
EXACT = ("rows", "scores", "user_part", "query_part")


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors.astype(np.float64), axis=-1, keepdims=True), 1e-6)


def problem(seed: int, num_rows: int, dim: int, size: int, latent_dim: int, k: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    return {
        "rows": unit(normal(num_rows, dim)).astype(np.float32),
        "user": normal(size, dim),
        "latents": normal(size, latent_dim),
        "weight": normal(dim, latent_dim),
        "bias": normal(dim),
        "omega": rng.choice(np.array([0, 0.3, 0.7, 1], np.float32), size),
        "k": k,
    }


def run(arguments: dict[str, Any], **options: Any) -> CpuScores:
    arguments = {**arguments, **options}
    return cpu_score(CpuIndex(arguments.pop("rows"), int8=True), **arguments)


def assert_same(actual: CpuScores, expected: CpuScores) -> None:
    for field in EXACT:
        assert getattr(actual, field).tobytes() == getattr(expected, field).tobytes(), field


def every_way(arguments: dict[str, Any]) -> CpuScores:
    """The answer, found the same bit for bit by every instruction set, scan and some numbers of threads."""
    expected = run(arguments, scan="fp32", num_threads=1, instructions="portable")
    for instructions, scan, threads in itertools.product(INSTRUCTION_SETS, ("fp32", "int8"), (1, 3)):
        assert_same(run(arguments, instructions=instructions, scan=scan, num_threads=threads), expected)
    return expected


def definition(arguments: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[B, N] scores, user parts and query parts in float64."""
    latents = arguments["latents"].astype(np.float64)
    omega = arguments["omega"].astype(np.float64)[:, None]
    present = (latents != 0).any(axis=1, keepdims=True)
    query = np.where(present, unit(latents @ arguments["weight"].T.astype(np.float64) + arguments["bias"]), 0)
    rows = arguments["rows"].T.astype(np.float64)
    user_part = omega * (unit(arguments["user"].astype(np.float64)) @ rows)
    query_part = (1 - omega) * (query @ rows)
    return user_part + query_part, user_part, query_part


def assert_right(answer: CpuScores, arguments: dict[str, Any]) -> None:
    score, user_part, query_part = definition(arguments)
    width = min(arguments["k"], len(arguments["rows"]))
    assert answer.rows.shape == (len(score), width)
    best = -np.sort(-score, axis=1)[:, :width]
    for ours, theirs in (
        (answer.scores, best),
        (answer.scores, np.take_along_axis(score, answer.rows, 1)),
        (answer.user_part, np.take_along_axis(user_part, answer.rows, 1)),
        (answer.query_part, np.take_along_axis(query_part, answer.rows, 1)),
    ):
        assert np.abs(ours - theirs).max(initial=0) <= TOLERANCE
    before, after = answer.scores[:, :-1], answer.scores[:, 1:]
    ordered = (before > after) | ((before == after) & (answer.rows[:, :-1] < answer.rows[:, 1:]))
    assert ordered.all()


def test_the_oracle_is_not_trivial() -> None:
    score, user_part, query_part = definition(problem(0, 50, 8, 4, 6, 3))
    assert min(np.abs(score).sum(), np.abs(user_part).sum(), np.abs(query_part).sum()) > 1


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_rows=st.integers(1, 200),
    dim=st.integers(1, 40),
    size=st.integers(1, 9),
    latent_dim=st.integers(1, 30),
    k=st.integers(1, 64),
)
def test_equals_the_definition(**shape: int) -> None:
    arguments = problem(**shape)
    assert_right(every_way(arguments), arguments)


def test_random_sessions_at_the_usual_width() -> None:
    """2,000 sessions against 3,000 intents: winners are those of a full sort wherever float32 can tell them apart."""
    arguments = problem(1, 3000, 128, 2000, 16, 3)
    answer = run(arguments)
    assert_right(answer, arguments)
    score, *_ = definition(arguments)
    order = np.argsort(-score, axis=1, kind="stable")[:, :4]
    gaps = -np.diff(np.take_along_axis(score, order, 1), axis=1).min(axis=1, initial=np.inf)
    assert (gaps > 2 * TOLERANCE).mean() > 0.95
    np.testing.assert_array_equal(answer.rows[gaps > 2 * TOLERANCE], order[gaps > 2 * TOLERANCE, :3])
    assert 3 <= answer.num_rescored.mean() < 60


ADVERSARIAL: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "all rows equal": lambda rows, _: np.broadcast_to(rows[:1], rows.shape),
    "duplicates": lambda rows, rng: rows[rng.integers(0, 5, len(rows))],
    "one ulp apart": lambda rows, rng: np.nextafter(
        np.broadcast_to(rows[:1], rows.shape), rng.choice(np.array([-9, 9], np.float32), rows.shape)
    ),
    "signed zeros": lambda rows, rng: rng.choice(np.array([0.0, -0.0], np.float32), rows.shape),
    "opposite rows": lambda rows, rng: rows[:1] * rng.choice(np.array([-1, 1], np.float32), (len(rows), 1)),
}


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_catalogues(name: str) -> None:
    for seed in range(20):
        arguments = problem(seed, 150, 1 + 3 * seed, 5, 7, 1 + 3 * seed)
        rows = ADVERSARIAL[name](arguments["rows"], np.random.default_rng(seed))
        arguments["rows"] = np.ascontiguousarray(rows, np.float32)
        assert_right(every_way(arguments), arguments)


def test_everything_ties_and_the_rows_decide() -> None:
    arguments = problem(0, 500, 16, 3, 4, 20)
    arguments["rows"] = np.ascontiguousarray(np.broadcast_to(arguments["rows"][:1], (500, 16)))
    assert every_way(arguments).rows.tolist() == [list(range(20))] * 3
    arguments["rows"] = np.where(np.arange(500)[:, None] % 2, np.float32(0), np.float32(-0.0)) * np.ones(16, np.float32)
    assert every_way(arguments).rows.tolist() == [list(range(20))] * 3


def test_a_batch_is_its_sessions_one_by_one_in_any_order() -> None:
    arguments = problem(2, 400, 32, 70, 20, 5)
    batch = run(arguments)
    per_session = ("user", "latents", "omega")
    order = np.random.default_rng(0).permutation(70)
    shuffled = run({**arguments, **{name: arguments[name][order] for name in per_session}})
    for field in EXACT:
        assert getattr(shuffled, field).tobytes() == getattr(batch, field)[order].tobytes()
    for b in range(70):
        alone = run({**arguments, **{name: arguments[name][b : b + 1] for name in per_session}})
        for field in EXACT:
            assert getattr(alone, field).tobytes() == getattr(batch, field)[b : b + 1].tobytes()


def test_metamorphic() -> None:
    arguments = problem(3, 300, 24, 6, 10, 5)
    answer = run(arguments)
    scaled = {"user": arguments["user"] * np.float32(2**20), "omega": arguments["omega"]}
    assert_same(run({**arguments, **scaled}), answer)
    order = np.random.default_rng(0).permutation(300)
    permuted = run({**arguments, "rows": arguments["rows"][order]})
    assert permuted.scores.tobytes() == answer.scores.tobytes()
    np.testing.assert_array_equal(order[permuted.rows], answer.rows)
    # Coordinates and rows that add nothing change nothing.
    wide = {name: np.pad(arguments[name], [(0, 0), (0, 9)]) for name in ("rows", "user")}
    wide |= {"weight": np.pad(arguments["weight"], [(0, 9), (0, 0)]), "bias": np.pad(arguments["bias"], [(0, 9)])}
    assert_same(run({**arguments, **wide}), answer)
    longer = np.concatenate([arguments["rows"], np.zeros((50, 24), np.float32)])
    assert answer.scores.min() > 0
    assert_same(run({**arguments, "rows": longer}), answer)


def test_agrees_with_the_ranker() -> None:
    arguments = problem(4, 64, 16, 8, 12, 64)
    arguments["latents"][2] = 0
    arguments["omega"][:] = 0.7
    tensors = {name: torch.from_numpy(value) for name, value in arguments.items() if isinstance(value, np.ndarray)}
    query = tensors["latents"] @ tensors["weight"].T + tensors["bias"]
    query[2] = 0
    ranker = type("Fused", (), {"omega": torch.tensor(0.7)})()
    user, query = (torch.nn.functional.normalize(x, dim=-1, eps=1e-6) for x in (tensors["user"], query))
    expected: Scores = Ranker._score(ranker, user, query, tensors["rows"])
    answer = run(arguments)
    for ours, theirs in (
        (answer.scores, expected.total),
        (answer.user_part, expected.user_part),
        (answer.query_part, expected.query_part),
    ):
        np.testing.assert_allclose(ours, np.take_along_axis(theirs.numpy(), answer.rows, 1), atol=TOLERANCE)


def test_omega_one_is_answered_whatever_the_latent_holds() -> None:
    arguments = problem(5, 80, 8, 4, 6, 3)
    arguments["omega"] = np.array([1, 0.5, 1, 1], np.float32)
    expected = run({**arguments, "latents": None, "weight": None})
    arguments["latents"][[0, 2, 3]] = [[np.nan], [np.inf], [0]]
    answer = every_way(arguments)
    for field in EXACT:
        assert getattr(answer, field)[[0, 2, 3]].tobytes() == getattr(expected, field)[[0, 2, 3]].tobytes()
    assert (expected.user_part == expected.scores).all()
    assert (expected.query_part == 0).all()
    assert (answer.query_part[1] != 0).all()


def test_a_zero_latent_leaves_the_user_part() -> None:
    arguments = problem(6, 80, 8, 2, 6, 3)
    arguments["omega"] = np.array([0.25, 0], np.float32)
    arguments["latents"][:] = -0.0
    answer = every_way(arguments)
    np.testing.assert_allclose(answer.scores[0], answer.user_part[0], atol=TOLERANCE)
    assert answer.rows[1].tolist() == [0, 1, 2]  # ω = 0 and no query: everything ties at 0
    assert (answer.query_part == 0).all()


def test_filters() -> None:
    arguments = problem(7, 150, 8, 5, 6, 10)
    allow = np.zeros((3, 192), bool)
    allow[0, [3, 31, 32, 63, 64, 127, 128, 149]] = True
    allow[1, :150] = np.random.default_rng(0).random(150) < 0.5
    allow[0, 150:] = True  # beyond the catalogue: not looked at
    filters = np.packbits(allow, axis=1, bitorder="little").view(np.uint64)
    filter_of = np.array([0, 1, -1, 2, 1], np.int32)
    answer = every_way({**arguments, "filters": filters, "filter_of": filter_of})
    free = every_way(arguments)
    assert sorted(answer.rows[0].tolist()) == [-1, -1, 3, 31, 32, 63, 64, 127, 128, 149]
    assert answer.rows[3].tolist() == [-1] * 10
    assert (answer.scores[answer.rows < 0] == -np.inf).all()
    assert (answer.user_part[answer.rows < 0] == 0).all()
    assert answer.rows[2].tobytes() == free.rows[2].tobytes()
    full = run({**arguments, "k": 64})
    for b in (1, 4):
        expected = [row for row in full.rows[b] if allow[1, row]][:10]
        assert len(expected) == 10
        assert answer.rows[b].tolist() == expected


def test_torch_tensors_are_read_in_place() -> None:
    arguments = problem(8, 60, 8, 3, 6, 3)
    tensors = {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in arguments.items()}
    assert_same(run(tensors), run(arguments))


def test_flushed_subnormals_change_nothing() -> None:
    arguments = problem(9, 60, 8, 3, 6, 3)
    arguments["rows"] *= np.float32(1e-38)
    expected = run(arguments, num_threads=1)
    assert (np.abs(expected.scores) < np.finfo(np.float32).tiny).any()
    assert (expected.scores != 0).all()
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush subnormals")
    try:
        assert_same(run(arguments, num_threads=1), expected)
    finally:
        torch.set_flush_denormal(False)


def refused(match: str, **changes: Any) -> None:
    arguments = problem(10, 60, 8, 3, 6, 3)
    arguments["omega"] = np.full(3, 0.5, np.float32)
    with pytest.raises(DataError, match=match):
        run({**arguments, **changes})


def with_value(array: np.ndarray, where: tuple[int, ...], value: float) -> np.ndarray:
    array = array.copy()
    array[where] = value
    return array


def test_refusals_name_the_row() -> None:
    given = problem(10, 60, 8, 3, 6, 3)
    omega = np.full(3, 0.5, np.float32)
    for value in (np.nan, np.inf, -np.inf):
        refused("cpu_score user, row 1: required finite", user=with_value(given["user"], (1, 7), value))
        refused("cpu_score latents, row 2: required finite", latents=with_value(given["latents"], (2, 0), value))
        refused("CpuIndex rows, row 59, column 7", rows=with_value(given["rows"], (59, 7), value))
        refused("cpu_score omega, row 0", omega=with_value(omega, (0,), value))
        refused("row 0: required a finite W e", weight=with_value(given["weight"], (3, 3), value))
    refused("cpu_score omega, row 2", omega=with_value(omega, (2,), 1.01))
    refused(
        "row 1: required a finite W e", latents=with_value(given["latents"], (1, 0), 3e38), weight=given["weight"] * 9
    )
    refused("CpuIndex rows, row 0, column 0", rows=with_value(given["rows"], (0, 0), 2e12))


def test_refusals_of_form() -> None:
    given = problem(10, 60, 8, 3, 6, 3)
    refused(r"cpu_score user: required a C-contiguous \[B, 8\] array of float32", user=given["user"].astype(np.float64))
    refused("not C-contiguous", user=np.asfortranarray(given["user"]))
    refused(r"\[3, H\].*shape \(2, 6\)", latents=given["latents"][:2])
    refused(r"\[8, 6\]", weight=given["weight"][:, :5].copy())
    refused("as there are latents", weight=None)
    refused(r"cpu_score bias: required a C-contiguous \[8\]", bias=given["bias"][:7])
    refused(r"cpu_score omega: required a C-contiguous \[3\]", omega=given["omega"][:2])
    refused("cpu_score k: required 1 to 64; received 0", k=0)
    refused("cpu_score k: required 1 to 64; received 65", k=65)
    refused("cpu_score num_threads", num_threads=0)
    refused("cpu_score scan", scan="int4")
    refused("cpu_score instructions", instructions="mmx")
    refused("at least one row", rows=np.zeros((0, 8), np.float32))
    refused("at least one row of 1 to 4096", rows=np.zeros((1, 4097), np.float32))
    filters = np.zeros((2, 1), np.uint64)
    refused("filter_of with filters", filters=filters)
    refused("filter_of, row 1: .* below 2; received 2", filters=filters, filter_of=np.array([0, 2, -1], np.int32))
    refused(r"cpu_score filters: required a C-contiguous \[F, 1\]", filters=np.zeros((2, 2), np.uint64),
            filter_of=np.zeros(3, np.int32))  # fmt: skip
    with pytest.raises(DataError, match="with an index that was packed for it"):
        cpu_score(CpuIndex(given["rows"], int8=False), given["user"], None, None, None, given["omega"], 1, scan="int8")


def test_no_sessions() -> None:
    arguments = problem(11, 60, 8, 1, 6, 3)
    answer = run({**arguments, **{name: arguments[name][:0] for name in ("user", "latents", "omega")}})
    assert answer.rows.shape == answer.query_part.shape == (0, 3)


def test_the_gil_is_released() -> None:
    rng = np.random.default_rng(0)
    index = CpuIndex(rng.standard_normal((40_000, 64), dtype=np.float32), int8=False)
    user, omega = rng.standard_normal((400, 64), dtype=np.float32), np.ones(400, np.float32)
    ticks: list[float] = []
    running = threading.Event()
    finished = threading.Event()

    def score() -> None:
        running.set()
        cpu_score(index, user, None, None, None, omega, 3, num_threads=1)
        finished.set()

    thread = threading.Thread(target=score)
    thread.start()
    running.wait()
    while not finished.is_set():
        ticks.append(time.perf_counter())
        time.sleep(0.0005)
    thread.join()
    # With the GIL held there would be one or two turns: before the call and after it.
    assert len(ticks) >= 5


def test_a_forked_child_still_scores() -> None:
    """The pool's threads do not exist in a child; it must neither hang nor differ."""
    program = """
import os, numpy as np
from rgalign.cpu_scorer import CpuIndex, cpu_score
rng = np.random.default_rng(0)
index = CpuIndex(rng.standard_normal((5000, 32), dtype=np.float32), int8=True)
user, omega = rng.standard_normal((9, 32), dtype=np.float32), np.ones(9, np.float32)
def answer():
    return cpu_score(index, user, None, None, None, omega, 3, num_threads=2).scores.tobytes()
expected = answer()
child = os.fork()
if child == 0:
    os._exit(0 if answer() == expected else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=60)
