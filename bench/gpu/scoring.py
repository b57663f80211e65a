"""The fused scoring call on a GPU, against torch: correctness first, then microseconds and the share of copy bandwidth.

    python -m rgalign.bench.gpu.scoring --out DIR [--seconds 420] [--dry]      (bench/gpu/run.sh)

Rows, one JSON object a line in DIR/scoring.jsonl, written as they come. Baselines of each shape, in the same run and in
turn: torch eager, torch eager in a CUDA graph, torch.compile. All do the same work: projection, unit vectors, fusion,
scores, top-k, from the same tensors. ``--dry``: tiny sizes, interpreted where there is no GPU, to try the control
flow; its times mean nothing and its rows say so. Imports nothing that the machine with the GPU does not have.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rgalign.bench.gpu.measure import copy_bandwidth, in_graph, microseconds
from rgalign.bench.rows import row
from rgalign.index.precision import PRECISIONS, encode
from rgalign.kernels.project_score_topk import device_limits, launch
from rgalign.kernels.score_reference import (
    Projection,
    Winners,
    decode,
    fuse,
    project,
    project_score_topk_reference,
    unit,
)
from rgalign.kernels.scoring_plan import Plan, plan

HIDDEN, DIM, K = 2560, 128, 3
# sessions, intents, stored; the shapes of issue 4 and a line through each axis
SHAPES = (
    (1, 5_000, "float16"),
    (1, 141, "float32"),
    (64, 1_000_000, "int8"),
    (64, 1_000_000, "float16"),
    (64, 10_000_000, "int8"),
    (64, 10_000_000, "float16"),
    (1, 1_000_000, "float16"),
    (1, 100_000, "float16"),
    (8, 5_000, "float16"),
    (32, 100_000, "float16"),
    (256, 1_000_000, "float16"),
    (64, 1_000_000, "bfloat16"),
    (64, 1_000_000, "float32"),
)
DRY_SHAPES = ((1, 40, "float16"), (3, 90, "int8"), (2, 50, "bfloat16"), (2, 50, "float32"))
SCORE_TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class Inputs:
    user: Tensor
    latents: Tensor
    projection: Projection
    omega: Tensor
    vectors: Tensor
    scales: Tensor | None

    @property
    def catalogue_bytes(self) -> int:
        scales = 0 if self.scales is None else 4 * len(self.scales)
        return self.vectors.numel() * self.vectors.element_size() + scales


def inputs(size: int, num_rows: int, stored: str, hidden: int, device: str, seed: int = 0) -> Inputs:
    """Random sessions and a random catalogue, made on the device in pieces."""
    g = torch.Generator(device).manual_seed(seed)
    pieces = [
        encode(unit(torch.randn(min(1 << 18, num_rows - start), DIM, device=device, generator=g)), stored)  # type: ignore[arg-type]
        for start in range(0, num_rows, 1 << 18)
    ]
    scales = None if stored != "int8" else torch.cat([piece[1] for piece in pieces if piece[1] is not None])
    weight = torch.randn(DIM, hidden, device=device, generator=g) / hidden**0.5
    return Inputs(
        torch.randn(size, DIM, device=device, generator=g),
        torch.randn(size, hidden, device=device, generator=g).to(torch.bfloat16),
        Projection(weight, torch.randn(DIM, device=device, generator=g), torch.ones(hidden, device=device), 1e-6),
        torch.rand(size, device=device, generator=g),
        torch.cat([piece[0] for piece in pieces]),
        scales,
    )


def torch_eager(given: Inputs, k: int = K) -> tuple[Tensor, Tensor]:
    """What one writes in torch: the catalogue multiplied in its own precision where it has one, then ``topk``."""
    weight, bias, norm_weight, norm_eps = given.projection
    assert norm_weight is not None
    states = functional.rms_norm(given.latents.float(), norm_weight.shape, norm_weight, norm_eps)
    query = functional.normalize(functional.linear(states, weight, bias), dim=1)
    omega = given.omega.unsqueeze(1)
    fused = omega * functional.normalize(given.user, dim=1) + (1 - omega) * query
    if given.scales is not None:
        scores = (fused.half() @ given.vectors.half().T).float() * given.scales
    else:
        scores = (fused.to(given.vectors.dtype) @ given.vectors.T).float()
    values, rows = scores.topk(k, dim=1)
    return rows, values


def plan_of(given: Inputs, k: int) -> Plan:
    num_rows, dim = given.vectors.shape
    size, hidden = given.latents.shape
    return plan(size, num_rows, dim, hidden, k, given.vectors.element_size(), *device_limits(given.user.device))


def fused_call(given: Inputs, k: int = K, one_launch: bool | None = None) -> Winners:
    cut = None if one_launch is None else dataclasses.replace(plan_of(given, k), one_launch=one_launch)
    return launch(given.user, given.latents, given.projection, given.omega, given.vectors, given.scales, k, cut=cut)


def defined(given: Inputs, k: int, part: slice) -> Winners:
    sessions = (given.user[part], given.latents[part], given.projection, given.omega[part])
    return project_score_topk_reference(*sessions, given.vectors, given.scales, k)


def check(given: Inputs, k: int = K) -> dict[str, Any]:
    """The kernels against the definition in float32, a chunk of sessions at a time; twice, for the same bits.

    Raises:
        SystemExit: a wrong score, a row that does not have the score it claims, or bits that differ between two runs.
    """
    # TF32 in the reference would be the larger error.
    torch.backends.cuda.matmul.allow_tf32 = False
    found, again = fused_call(given, k), fused_call(given, k)
    same_bits = all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    worst, same_rows, count = 0.0, 0, 0
    for start in range(0, len(given.user), 8):
        part = slice(start, start + 8)
        expected = defined(given, k, part)
        worst = max(worst, float((found.scores[part] - expected.scores).abs().max()))
        same_rows += int((found.rows[part] == expected.rows).sum())
        count += expected.rows.numel()
        chosen = found.rows[part].flatten()
        rows = decode(given.vectors[chosen], None if given.scales is None else given.scales[chosen])
        fused = fuse(given.user[part], project(given.latents[part], given.projection), given.omega[part])[0]
        claimed = torch.einsum("bd,bkd->bk", fused, rows.view(len(fused), -1, DIM))
        worst = max(worst, float((found.scores[part] - claimed).abs().max()))
    result = {"largest_error": worst, "same_rows": same_rows / count, "same_bits": same_bits}
    if worst > SCORE_TOLERANCE or not same_bits:
        raise SystemExit(f"wrong: {result}")
    return result


def variants(given: Inputs, on_gpu: bool) -> dict[str, Callable[[], Any]]:
    """Name -> call. Compilation and capture happen here."""
    calls: dict[str, Callable[[], Any]] = {"fused": lambda: fused_call(given)}
    if not on_gpu:
        return {**calls, "torch eager": lambda: torch_eager(given)}
    torch._dynamo.reset()  # each shape its own code, not a ninth recompilation
    compiled = torch.compile(torch_eager, dynamic=False)
    small = len(given.user) <= 32 and len(given.vectors) <= 200_000
    calls |= {"torch eager": lambda: torch_eager(given), "torch.compile": lambda: compiled(given)}
    calls["fused, in a graph"] = in_graph(lambda: fused_call(given))
    calls["torch eager, in a graph"] = in_graph(lambda: torch_eager(given))
    if small:  # both plans, so that the next threshold between them is a measured one
        calls["fused, one launch, in a graph"] = in_graph(lambda: fused_call(given, one_launch=True))
        calls["fused, three launches, in a graph"] = in_graph(lambda: fused_call(given, one_launch=False))
    return calls


def measure(shape: tuple[int, int, str], hidden: int, device: str, bandwidth: float, dry: bool) -> list[dict[str, Any]]:
    size, num_rows, stored = shape
    given = inputs(size, num_rows, stored, hidden, device)
    checked = check(given)
    rows = []
    for name, spread in microseconds(variants(given, device == "cuda"), device).items():
        read = given.catalogue_bytes / (spread["median"] * 1e-6)
        rows.append(
            row(
                "gpu scoring",
                variant=name,
                sessions=size,
                intents=num_rows,
                dim=DIM,
                hidden=hidden,
                k=K,
                index=stored,
                microseconds=spread,
                catalogue_bytes_per_s=round(read),
                share_of_copy_bandwidth=round(read / bandwidth, 4),
                copy_bytes_per_s=round(bandwidth),
                check=checked,
                dry=dry,
            )
        )
    return rows


def adversarial(device: str, hidden: int) -> dict[str, float]:
    """Ties, huge lengths, zeros, few intents and ω = 1 over NaN, against the definition; the rows must be equal."""
    eye = torch.eye(DIM, device=device)
    given = inputs(4, 64, "float32", hidden, device)
    tied = dataclasses.replace(
        given, vectors=eye.repeat(3, 1).contiguous(), omega=torch.ones(4, device=device), user=eye[:4] * 2.0**90
    )
    late = dataclasses.replace(
        given, latents=torch.full_like(given.latents, torch.nan), omega=torch.ones(4, device=device)
    )
    zero = dataclasses.replace(given, latents=torch.zeros_like(given.latents), user=torch.zeros_like(given.user))
    few = dataclasses.replace(given, vectors=given.vectors[:2].contiguous())
    errors: dict[str, float] = {}
    for name, case in {"ties": tied, "late": late, "zeros": zero, "few": few}.items():
        expected = defined(case, 5, slice(None))
        for one_launch in (True, False):
            found = fused_call(case, min(5, len(case.vectors)), one_launch)
            if not torch.equal(found.rows, expected.rows):
                raise SystemExit(f"wrong rows: {name}, one launch {one_launch}: {found.rows} for {expected.rows}")
            errors[name] = max(errors.get(name, 0.0), float((found.scores - expected.scores).abs().max()))
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=420, help="no further shape is begun after this long")
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    began = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not arguments.dry:
        raise SystemExit("no GPU: only --dry runs here")
    hidden = 48 if arguments.dry else HIDDEN
    bandwidth = copy_bandwidth(device, 1 << 20 if arguments.dry else 1 << 32)
    print(f"copy: {bandwidth / 1e12:.3f} TB/s; adversarial: {adversarial(device, hidden)}", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    assert {stored for _, _, stored in SHAPES} == set(PRECISIONS)
    with open(arguments.out / "scoring.jsonl", "w", encoding="utf-8") as file:
        for shape in DRY_SHAPES if arguments.dry else SHAPES:
            if time.monotonic() - began > arguments.seconds:
                print(f"out of time before {shape}", flush=True)
                break
            for found in measure(shape, hidden, device, bandwidth, arguments.dry):
                file.write(json.dumps(found) + "\n")
                file.flush()
                print(shape, found["variant"], found["microseconds"], found["share_of_copy_bandwidth"], flush=True)
            if device == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
