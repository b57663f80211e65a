"""score(): both CPU backends against a float64 oracle, filters, ω by session, and what must not change an answer."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from rgalign.errors import ConfigError, DataError
from rgalign.index import IntentIndex, build_index
from rgalign.kernels.score_reference import Projection, unit
from rgalign.models.query_tower import QueryTower
from rgalign.scoring import Filters, RankedIntents, identity_projection, projection_of, score, score_matrix

BACKENDS = ("reference", "cpu")
TOLERANCE = 2e-6  # float32 sums of up to 64 products of values below 1, against float64


class Case(NamedTuple):
    user: Tensor
    latents: Tensor | None
    projection: Projection
    omega: Tensor
    index: IntentIndex
    k: int


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def index_of(vectors: Tensor, precision: str = "float32") -> IntentIndex:
    ids = [f"i{row:04d}" for row in range(len(vectors))]
    return build_index(ids, ids, vectors, {}, precision)  # type: ignore[arg-type]


def random_case(seed: int, size: int = 20) -> Case:
    g = draw(seed)
    dim, hidden = 4 + seed % 61, 1 + seed * 7 % 50
    num_intents, k = 1 + seed * 13 % 150, 1 + seed % 9
    return Case(
        torch.randn(size, dim, generator=g) * 10.0 ** (seed % 7 - 3),
        None if seed % 11 == 0 else torch.randn(size, hidden, generator=g),
        Projection(torch.randn(dim, hidden, generator=g), torch.randn(dim, generator=g) if seed % 2 else None),
        torch.rand(size, generator=g),
        index_of(
            unit(torch.randn(num_intents, dim, generator=g)), ("float32", "int8", "bfloat16", "float16")[seed % 4]
        ),
        k,
    )


def oracle(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Scores and parts [B, N] in float64, from the stored vectors, written apart from the definition."""

    def normalised(x: Tensor) -> Tensor:
        return torch.stack([row / max(float(row.norm()), 1e-6) for row in x])

    stored = case.index.vectors.double()
    rows = stored if case.index.scales is None else stored * case.index.scales.double()[:, None]
    user, omega = normalised(case.user.double()), case.omega.double()[:, None]
    if case.latents is None:
        return user @ rows.T, user @ rows.T, torch.zeros(len(user), len(rows), dtype=torch.float64)
    projected = case.latents.double() @ case.projection.weight.double().T
    if case.projection.bias is not None:
        projected += case.projection.bias.double()
    query = normalised(projected * (case.latents != 0).any(dim=1, keepdim=True))
    query = torch.where(omega < 1, query, 0.0)
    return omega * user @ rows.T + (1 - omega) * query @ rows.T, omega * user @ rows.T, (1 - omega) * query @ rows.T


def require_right(answer: RankedIntents, case: Case) -> None:
    """Scores and parts are the oracle's; nothing that was left out is better than what is there."""
    total, user_part, query_part = oracle(case)
    rows = answer.rows
    assert rows.shape == (len(case.user), min(case.k, len(case.index)))
    for found, expected in ((answer.scores, total), (answer.user_part, user_part), (answer.query_part, query_part)):
        assert (found.double() - expected.gather(1, rows)).abs().max() < TOLERANCE
    best = total.sort(dim=1, descending=True).values[:, : rows.shape[1]]
    assert (answer.scores.double() - best).abs().max() < TOLERANCE
    for session in range(len(rows)):
        places = list(zip((-answer.scores[session]).tolist(), rows[session].tolist(), strict=True))
        assert places == sorted(places)
        assert len(set(rows[session].tolist())) == rows.shape[1]


def ranked(case: Case, backend: str, filters: Filters | None = None) -> RankedIntents:
    user, latents, projection, omega, index, k = case
    return score(latents, user, projection, index, omega, k, filters=filters, backend=backend)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_thousand_random_sessions(backend: str) -> None:
    for seed in range(100):
        case = random_case(seed)
        if seed == 1:
            assert oracle(case)[0].abs().sum() > 1, "the oracle is not trivial"
        require_right(ranked(case, backend), case)


def exact_ties() -> Iterator[tuple[Case, list[list[int]]]]:
    """Rows ±e_j: every sum is exact, so the order by row is decided, and known."""
    eye = torch.eye(8)
    for seed in range(25):
        axes = torch.randint(0, 8, (40,), generator=draw(seed))
        index = index_of(eye[axes], ("float32", "int8")[seed % 2])
        user = eye[torch.randint(0, 8, (8,), generator=draw(seed + 100))] * 2.0 ** (seed - 12)
        case = Case(user, None, Projection(eye), torch.ones(8), index, 6)
        expected = [sorted(range(40), key=lambda row, u=u: (-float(eye[axes[row]] @ u), row))[:6] for u in user]
        yield case, expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_exact_ties_go_to_the_lower_id(backend: str) -> None:
    sessions = 0
    for case, expected in exact_ties():
        answer = ranked(case, backend)
        assert answer.rows.tolist() == expected
        assert answer.ids[0] == [case.index.ids[row] for row in expected[0]]
        sessions += len(expected)
    assert sessions == 200


def nudged(vectors: Tensor, seed: int) -> Tensor:
    """Copies of each row with one coordinate moved by one unit in the last place, up or down."""
    copies = vectors.repeat(3, 1)
    column = torch.randint(0, vectors.shape[1], (len(copies),), generator=draw(seed))
    away = torch.where(torch.arange(len(copies)) % 2 == 0, torch.inf, -torch.inf)
    at = torch.arange(len(copies))
    copies[at, column] = torch.nextafter(copies[at, column], away)
    return torch.cat([vectors, copies])


def adversarial(kind: str, seed: int) -> Case:
    case = random_case(seed * 4 + 1, size=10)
    user, latents = case.user, case.latents
    vectors = unit(torch.randn(12, user.shape[1], generator=draw(seed)))
    if kind == "one ulp apart":
        return case._replace(index=index_of(nudged(vectors, seed)))
    if kind == "duplicates":
        return case._replace(index=index_of(vectors.repeat(9, 1)))
    if kind == "zeros":
        assert latents is not None
        user, latents = user.clone(), latents.clone()
        user[::3], latents[::2] = 0, 0
        return case._replace(user=user, latents=latents, k=3)
    if kind == "huge":
        return case._replace(user=unit(user) * 1e30, latents=unit(latents) * 1e30)
    if kind == "tiny":
        return case._replace(user=unit(user) * 1e-5, latents=unit(latents) * 1e-5)
    assert kind == "few intents"
    return case._replace(index=index_of(vectors[: 1 + seed % 4]), k=60)


KINDS = ("one ulp apart", "duplicates", "zeros", "huge", "tiny", "few intents")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_adversarial_sessions(kind: str, backend: str) -> None:
    for seed in range(5):
        case = adversarial(kind, seed)
        require_right(ranked(case, backend), case)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_degraded_session_rides_in_the_batch(backend: str) -> None:
    case = random_case(5)
    assert case.latents is not None
    broken, omega = case.latents.clone(), case.omega.clone()
    broken[2], omega[2] = torch.nan, 1
    answer = ranked(case._replace(latents=broken, omega=omega), backend)
    alone = ranked(case._replace(user=case.user[2:3], latents=None, omega=torch.zeros(1)), backend)
    assert torch.equal(answer.rows[2:3], alone.rows)
    assert (answer.scores[2:3] - alone.scores).abs().max() < (1e-12 if backend == "cpu" else TOLERANCE)
    assert answer.query_part[2].abs().max() == 0
    assert torch.equal(answer.rows[:2], ranked(case, backend).rows[:2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_filters_of_a_session(backend: str) -> None:
    case = random_case(53)._replace(k=5)
    index = case.index
    assert len(index) > 64
    total = oracle(case)[0]
    some = [index.ids[row] for row in range(0, len(index), 9)]
    best = index.ids[int(total[1].argmax())]
    filters = Filters.each([index.allow(some), index.deny([best]), index.allow([best]), *[None] * (len(total) - 3)])
    assert filters is not None
    answer = ranked(case, backend, filters)
    assert set(answer.ids[0]) <= set(some)
    first = max(range(0, len(index), 9), key=lambda row: float(total[0, row]))
    assert answer.ids[0][0] == index.ids[first]
    assert best not in answer.ids[1]
    assert answer.ids[2] == [best]
    assert answer.rows[2].tolist() == [index.rows[best], -1, -1, -1, -1]
    assert answer.scores[2, 1:].tolist() == [-torch.inf] * 4
    assert answer.user_part[2, 1:].tolist() == [0.0] * 4
    assert torch.equal(answer.rows[3:], ranked(case, backend).rows[3:])
    assert Filters.each([None, None]) is None


def permuted(case: Case) -> tuple[Case, Callable[[RankedIntents], Tensor]]:
    order = torch.randperm(len(case.user), generator=draw(3))
    assert case.latents is not None
    changed = case._replace(user=case.user[order], latents=case.latents[order], omega=case.omega[order])
    return changed, lambda answer: answer.rows[order.argsort()]


def scaled(case: Case) -> tuple[Case, Callable[[RankedIntents], Tensor]]:
    assert case.latents is not None
    projection = Projection(case.projection.weight, None)
    return (
        case._replace(user=case.user * 2.0**9, latents=case.latents * 2.0**-7, projection=projection),
        lambda answer: answer.rows,
    )


def padded(case: Case) -> tuple[Case, Callable[[RankedIntents], Tensor]]:
    """Two more coordinates, of no weight, at the end of every vector."""
    index = build_index(case.index.ids, case.index.ids, torch.nn.functional.pad(case.index.decoded, (0, 2)), {})
    projection = Projection(torch.nn.functional.pad(case.projection.weight, (0, 0, 0, 2)), None)
    return case._replace(
        user=torch.nn.functional.pad(case.user, (0, 2)), projection=projection, index=index
    ), lambda answer: answer.rows


@pytest.mark.parametrize("change", [permuted, scaled, padded])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_must_not_change_the_order(
    change: Callable[..., tuple[Case, Callable[..., Tensor]]], backend: str
) -> None:
    for seed in (8, 16, 24, 32):  # float32 indexes
        case = random_case(seed)
        case = case._replace(projection=Projection(case.projection.weight, None))
        changed, restore = change(case)
        plain, answer = ranked(case, backend), ranked(changed, backend)
        assert torch.equal(restore(answer), plain.rows)
        if change is scaled:
            assert torch.equal(answer.scores, plain.scores), "powers of two change no bit"


def test_further_intents_move_nobody_who_beats_them() -> None:
    case = random_case(8)
    far = -unit(case.user[:1])
    index = build_index([*case.index.ids, "i0000a"], [*case.index.ids, "x"], torch.cat([case.index.decoded, far]), {})
    case = case._replace(user=case.user[:1].repeat(3, 1), latents=None, omega=torch.ones(3), k=1)
    assert ranked(case, "cpu").ids == ranked(case._replace(index=index), "cpu").ids


def test_the_two_backends_give_the_same_rows() -> None:
    for seed in range(0, 100, 7):
        case = random_case(seed)
        first, second = ranked(case, "reference"), ranked(case, "cpu")
        assert (first.scores - second.scores).abs().max() < TOLERANCE
        assert (first.rows != second.rows).float().mean() < 0.01, "only sessions with near ties"


def test_the_folded_query_tower_is_the_tower() -> None:
    torch.manual_seed(0)
    tower = QueryTower(30, 8, "standardize", 0.0).eval()
    latents = torch.randn(50, 30) * 5 + 3
    tower.set_statistics(latents)
    index = index_of(unit(torch.randn(40, 8)))
    user = torch.randn(50, 8)
    answer = score(latents, user, projection_of(tower), index, 0.3, 4)
    given = score(tower(latents), user, identity_projection(8), index, 0.3, 4)
    assert torch.equal(answer.rows, given.rows)
    assert (answer.scores - given.scores).abs().max() < 1e-5
    everything = score_matrix(user, tower(latents), 0.3, index.decoded)
    assert (everything.gather(1, answer.rows) - answer.scores).abs().max() < 1e-5
    with pytest.raises(ConfigError, match="layernorm does not fold"):
        projection_of(QueryTower(30, 8, "layernorm", 0.0))


def test_the_final_norm_of_the_reasoner() -> None:
    case = random_case(9)
    assert case.latents is not None
    gain = torch.rand(case.latents.shape[1], generator=draw(1)) + 0.5
    normed = torch.nn.functional.rms_norm(case.latents, gain.shape, gain, 1e-5)
    raw = case._replace(projection=Projection(*case.projection[:2], gain, 1e-5))
    for backend in BACKENDS:
        answer, expected = ranked(raw, backend), ranked(case._replace(latents=normed), backend)
        assert torch.equal(answer.rows, expected.rows)
        assert (answer.scores - expected.scores).abs().max() < TOLERANCE


def test_more_than_64_intents_are_ranked_by_the_definition() -> None:
    case = random_case(53)._replace(k=100)
    require_right(ranked(case, "auto"), case)
    with pytest.raises(DataError, match="at most 64 with cpu; received 100"):
        ranked(case, "cpu")


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "k": ({"k": 0}, "score k: required at least 1"),
    "width": ({"user": torch.ones(20, 3)}, "score z_u: required .B, "),
    "integers": ({"user": torch.ones(20, 57, dtype=torch.int64)}, "of floats"),
    "omega": ({"omega": torch.ones(3)}, "score omega: required .20. of floats"),
    "latents": ({"latents": torch.ones(20, 2)}, "score e_ltp"),
    "no tower": ({"projection": None}, "required a projection"),
    "bias": ({"projection": Projection(torch.ones(57, 22), torch.ones(3))}, "query_tower bias"),
    "a user's NaN": ({"user": torch.full((20, 57), torch.nan)}, "row 0: required finite"),
    "a query's infinity": ({"latents": torch.full((20, 22), torch.inf)}, "row 0: required"),
    "omega above 1": ({"omega": torch.full((20,), 1.5)}, "omega, row 0: required a weight"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, backend: str) -> None:
    case = random_case(53)
    assert case.latents is not None
    assert (case.user.shape, case.latents.shape) == ((20, 57), (20, 22))
    changes, message = REFUSED[name]
    with pytest.raises(DataError, match=message):
        ranked(case._replace(**changes), backend)  # type: ignore[arg-type]


def test_filters_and_backends_that_are_refused() -> None:
    case = random_case(53)
    with pytest.raises(DataError, match="uint64 bitsets"):
        ranked(case, "auto", Filters(np.zeros((1, 9), np.uint64), np.zeros(20, np.int32)))
    width = -(-len(case.index) // 64)
    with pytest.raises(DataError, match="row 4: required -1 .none. or a filter below 1; received 7"):
        ranked(case, "auto", Filters(np.zeros((1, width), np.uint64), np.array([0] * 4 + [7] * 16, np.int32)))
    with pytest.raises(DataError, match="int32 of shape"):
        ranked(case, "auto", Filters(np.zeros((1, width), np.uint64), np.zeros(3, np.int32)))
    with pytest.raises(ConfigError, match="auto or one of reference, cpu; received 'triton'"):
        ranked(case, "triton")
