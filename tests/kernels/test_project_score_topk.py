"""The Triton kernels: the definition in the interpreter, the custom op, and what the compiled binaries use."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed (the extra `gpu`)")

from rgalign.index.precision import encode
from rgalign.kernels.project_latents import project_latents
from rgalign.kernels.project_score_topk import device_limits, launch, project_score_topk
from rgalign.kernels.score_reference import Projection, Winners, project, project_score_topk_reference, unit
from rgalign.kernels.scoring_plan import Plan, plan

interpreted = pytest.mark.skipif(
    not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs a GPU or TRITON_INTERPRET=1",
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# float32 sums of products that are exact in it; tf32x3 and the sums of split vectors are as good to a bit or two
TOLERANCE = 4e-6


@dataclasses.dataclass
class Inputs:
    """Arguments of ``launch`` in order, on the device."""

    user: Tensor
    latents: Tensor | None
    projection: Projection | None
    omega: Tensor
    vectors: Tensor
    scales: Tensor | None
    k: int
    filters: Tensor | None = None
    filter_of: Tensor | None = None

    def arguments(self) -> tuple[object, ...]:
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))


def inputs(
    precision: str, size: int = 5, num_rows: int = 100, dim: int = 24, hidden: int = 40, k: int = 4, seed: int = 0
) -> Inputs:
    g = torch.Generator().manual_seed(seed)
    stored, scales = encode(unit(torch.randn(num_rows, dim, generator=g)), precision)  # type: ignore[arg-type]
    weight, bias = torch.randn(dim, hidden, generator=g), torch.randn(dim, generator=g)
    projection = Projection(weight.to(DEVICE), bias.to(DEVICE))
    return Inputs(
        torch.randn(size, dim, generator=g).to(DEVICE),
        torch.randn(size, hidden, generator=g).to(DEVICE),
        projection,
        torch.rand(size, generator=g).to(DEVICE),
        stored.to(DEVICE),
        None if scales is None else scales.to(DEVICE),
        k,
    )


def cut_of(given: Inputs, one_launch: bool, tiles_per_split: int = 1) -> Plan:
    hidden = 0 if given.latents is None else given.latents.shape[1]
    (num_rows, dim), size = given.vectors.shape, given.vectors.element_size()
    chosen = plan(len(given.user), num_rows, dim, hidden, given.k, size, *device_limits(given.user.device))
    rows = tiles_per_split * chosen.block_n
    return dataclasses.replace(chosen, one_launch=one_launch, rows_per_split=rows, num_splits=-(-num_rows // rows))


def require_equal(found: Winners, expected: Winners) -> None:
    assert expected.scores.isfinite().any()
    assert torch.equal(found.rows, expected.rows)
    present = expected.rows >= 0
    assert torch.equal(found.scores[~present], expected.scores[~present])
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert (ours - theirs)[present].abs().max() < TOLERANCE


@interpreted
@pytest.mark.parametrize(
    ("precision", "one_launch"),
    [("float32", True), ("float16", True), ("bfloat16", True), ("int8", True), ("float16", False), ("int8", False)],
)
def test_the_kernels_are_the_definition(precision: str, one_launch: bool) -> None:
    given = inputs(precision, size=4, num_rows=300, k=3)
    assert given.latents is not None
    assert given.projection is not None
    gain = torch.linspace(0.5, 1.5, given.latents.shape[1], device=DEVICE)
    given.projection = Projection(given.projection.weight, given.projection.bias, gain, 1e-5)
    given.latents[2] = 0
    given.latents[1], given.omega[1] = torch.nan, 1  # not read
    given.filters = torch.randint(-(2**63), 2**63 - 1, (2, 5), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    given.filter_of = torch.tensor([0, -1, 1, 0], dtype=torch.int32, device=DEVICE)
    found = launch(*given.arguments(), cut=cut_of(given, one_launch))  # type: ignore[arg-type]
    require_equal(found, project_score_topk_reference(*given.arguments()))  # type: ignore[arg-type]


SHAPES = {
    "one session, ten intents": {"size": 1, "num_rows": 10, "k": 3},
    "more winners than intents": {"size": 2, "num_rows": 7, "k": 64},
    "k = 64": {"size": 1, "num_rows": 70, "k": 64},
    "wide": {"size": 2, "num_rows": 40, "dim": 512, "hidden": 3},
    "narrow, odd": {"size": 3, "num_rows": 130, "dim": 1, "hidden": 1, "k": 1},
}


@interpreted
@pytest.mark.parametrize("name", SHAPES)
def test_unkind_shapes(name: str) -> None:
    given = inputs("float32", **SHAPES[name])
    if name == "narrow, odd":  # every score is ±1 or 0: all ties
        given.latents = given.projection = None
    expected = project_score_topk_reference(*given.arguments())  # type: ignore[arg-type]
    for one_launch in (True, False) if name in ("one session, ten intents", "narrow, odd") else (True,):
        if not one_launch:
            given.latents = given.projection = None
            expected = project_score_topk_reference(*given.arguments())  # type: ignore[arg-type]
        require_equal(launch(*given.arguments(), cut=cut_of(given, one_launch)), expected)  # type: ignore[arg-type]


@interpreted
def test_ties_across_tiles_and_splits_go_to_the_lower_row() -> None:
    eye = torch.eye(16, device=DEVICE)
    axes = torch.randint(0, 16, (300,), generator=torch.Generator().manual_seed(0))
    given = Inputs(eye[:2] * 4, None, None, torch.ones(2, device=DEVICE), eye[axes].contiguous(), None, 5)
    expected = project_score_topk_reference(*given.arguments())  # type: ignore[arg-type]
    assert expected.scores.unique().tolist() == [1.0]
    for one_launch in (True, False):
        found = launch(*given.arguments(), cut=cut_of(given, one_launch))  # type: ignore[arg-type]
        assert torch.equal(found.rows, expected.rows)


@interpreted
def test_a_session_without_a_number_comes_back_as_padding() -> None:
    given = inputs("float32")
    given.user[3] = torch.nan
    found = launch(*given.arguments(), cut=cut_of(given, True))  # type: ignore[arg-type]
    assert found.rows[3].tolist() == [-1] * 4
    assert (found.rows[:3] >= 0).all()


@interpreted
@pytest.mark.parametrize("size", [2, 12])
def test_the_projection_is_the_definition(size: int) -> None:
    given = inputs("float32", size=size, dim=6, hidden=70)
    assert given.latents is not None
    assert given.projection is not None
    given.latents[1] = 0
    gain = torch.linspace(0.5, 1.5, 70, device=DEVICE)
    for projection in (given.projection, Projection(given.projection.weight, None, gain, 1e-3)):
        precision = "tf32x3" if DEVICE == "cuda" else "ieee"
        found = project_latents(given.latents, projection, torch.zeros(size, device=DEVICE), precision)
        expected = project(given.latents, projection)
        assert expected.abs().max() > 1
        assert (found - expected).abs().max() < 1e-4
        assert found[1].abs().max() == 0


def test_the_custom_op() -> None:
    given = inputs("int8", num_rows=30)
    weight, bias, norm_weight, norm_eps = given.projection or Projection(given.user)
    arguments = (given.user, given.latents, weight, bias, norm_weight, norm_eps, *given.arguments()[3:])
    op = torch.ops.rgalign.project_score_topk
    torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))
    answer = project_score_topk(*given.arguments())  # type: ignore[arg-type]
    require_equal(answer, project_score_topk_reference(*given.arguments()))  # type: ignore[arg-type]


def test_the_compiler_sees_the_op() -> None:
    given = inputs("float32", num_rows=30)

    class Scorer(torch.nn.Module):
        def forward(self, user: Tensor) -> Tensor:
            answer = project_score_topk(2 * user, *given.arguments()[1:])  # type: ignore[arg-type]
            return answer.scores + 1

    exported = torch.export.export(Scorer(), (given.user,), strict=False)
    assert "rgalign.project_score_topk" in str(exported.graph)
    assert torch.equal(exported.module()(given.user), Scorer()(given.user))
    traced = torch.compile(Scorer(), backend="eager", fullgraph=True)
    assert torch.equal(traced(given.user), Scorer()(given.user))


def test_what_is_refused() -> None:
    given = inputs("float32")
    with pytest.raises(ValueError, match="required k from 1 to 64 and D to 512; received 65 and 24"):
        project_score_topk(*dataclasses.replace(given, k=65).arguments())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="required a contiguous user"):
        project_score_topk(*dataclasses.replace(given, user=given.user.T.contiguous().T).arguments())  # type: ignore[arg-type]


def test_plans_cover_the_catalogue_and_depend_on_sizes_alone() -> None:
    for size in (1, 3, 16, 17, 64, 256):
        for num_rows in (1, 10, 141, 5000, 10_000_000):
            for k in (1, 3, 64):
                cut = plan(size, num_rows, 128, 2560, k, 1, 132, 128)
                assert (cut.num_splits - 1) * cut.rows_per_split < num_rows <= cut.num_splits * cut.rows_per_split
                assert cut.rows_per_split % cut.block_n == 0
                assert cut.num_splits * k <= 8192
    assert plan(8, 141, 64, 576, 3, 4, 132, 128).one_launch
    assert not plan(1, 5000, 128, 2560, 3, 2, 132, 128).one_launch
    assert plan(64, 1_000_000, 128, 2560, 3, 1, 132, 128).num_splits >= 132


# Registers are 255 at most by the hardware; spilled bytes are what a kernel keeps outside them.
MAX_SPILLED = {"scan": 0, "merge": 0, "project many": 0, "project one": 0, "one launch": 96}
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}


@pytest.mark.parametrize("arch", SHARED_BYTES)
def test_the_binaries_fit_the_gpu(arch: int) -> None:
    wanted = set(MAX_SPILLED) if arch == 90 else {"scan"}
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "rgalign.bench.gpu.compile_only", "--arch", str(arch), "--index", "int8"]
    command += ["--kernel", *wanted]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["kernel"] for row in rows} == wanted
    for row in rows:
        print(row)
        assert row["spilled_bytes"] <= MAX_SPILLED[row["kernel"]], row
        assert row["shared_bytes"] <= SHARED_BYTES[arch], row
        assert 0 < row["registers"] <= 255
        if row["kernel"] == "scan":
            assert row["async_copies"] > 0, "the next tiles are not loaded ahead"
            assert row["tensor_core_instructions"] > 0
