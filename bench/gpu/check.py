"""The kernels and the engine's forward against their definitions, on the GPU that will be timed.

    python -m rgalign.bench.gpu.check [--dry]      (bench/gpu/run.sh)

Two layers of the true widths, random weights; the expectation is the plain forward in float32, a prompt at a time.
Every bucket is a CUDA graph, packs are not full, and one is eager. The scorer stands behind the states in each.

Raises SystemExit at the first thing that is wrong: nothing may be timed then.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rgalign.bench.gpu.decoders import QWEN3_4B, TINY, PlainDecoder, engine_decoder, random_ends
from rgalign.bench.gpu.measure import has_fp8
from rgalign.bench.gpu.scoring import adversarial
from rgalign.kernels.on_cpu import interpreted
from rgalign.kernels.score_reference import Projection, project_score_topk_reference, unit
from rgalign.reasoner.engine.cuda.matrix import CudaDtype
from rgalign.reasoner.engine.cuda.pack import Ints
from rgalign.reasoner.engine.cuda.runner import Head, Runner
from rgalign.reasoner.engine.decoder_config import DecoderConfig

# Least cosine with float32's states. On a CPU, by the kernels' definitions: 0.99999, 0.9995 and 0.998 of two layers of
# these widths; 0.9999, 0.998 and 0.98 of 36 narrow ones.
LEAST_COSINE: dict[CudaDtype, float] = {"bf16": 0.998, "int8": 0.99, "fp8": 0.95}
SCORE_TOLERANCE = 1e-4
DIM, INTENTS, K = 128, 5_000, 3


@dataclass(frozen=True)
class Packs:
    """Args: buckets: of the graphs; lengths: of each pack's prompts; prefix: tokens that may stand before them."""

    buckets: tuple[int, ...]
    lengths: tuple[tuple[int, ...], ...]
    prefix: int


PACKS = Packs((64, 192, 384, 1024, 2048), ((1, 40), (170,), (350,), (7, 64, 65, 350), (170,) * 12, (500,) * 5), 180)
DRY_PACKS = Packs((16,), ((1, 9),), 11)


def dtypes(device: str) -> tuple[CudaDtype, ...]:
    return ("bf16", "int8", "fp8") if has_fp8(device) else ("bf16", "int8")


def kernels_of(device: str) -> AbstractContextManager[None]:
    """On a CPU the kernels are interpreted."""
    return nullcontext() if device == "cuda" else interpreted()


def prompts_of(lengths: Sequence[int], vocabulary: int, seed: int) -> list[Ints]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocabulary, length).astype(np.int32) for length in lengths]


def require_alike(what: str, found: Tensor, expected: Tensor, dtype: CudaDtype) -> float:
    """The least cosine of two [B, D].

    Raises:
        SystemExit: less than LEAST_COSINE, or not finite.
    """
    cosine = float(torch.cosine_similarity(found.float(), expected.float()).min())
    if not cosine >= LEAST_COSINE[dtype]:  # NaN is not
        raise SystemExit(f"wrong: {what}: cosine {cosine}, required {LEAST_COSINE[dtype]}")
    return cosine


def check_forward(config: DecoderConfig, packs: Packs, device: str) -> None:
    """Raises SystemExit: other states than the plain forward's, or other winners than the definition's."""
    ends = random_ends(config, device)
    plain = PlainDecoder(config, ends, torch.float32)
    g = torch.Generator().manual_seed(2)
    weight = torch.randn(DIM, config.hidden, generator=g) / config.hidden**0.5
    head = Head(
        Projection(weight.to(device), torch.randn(DIM, generator=g).to(device)),
        unit(torch.randn(INTENTS if device == "cuda" else 40, DIM, generator=g)).to(device),
        None,
        K,
    )
    (prefix,) = prompts_of([packs.prefix], config.vocabulary, 1)
    cases = [prompts_of(lengths, config.vocabulary, seed) for seed, lengths in enumerate(packs.lengths, 3)]
    expected: dict[int, list[Tensor]] = {}
    for before in (0, packs.prefix):
        cache = plain.prefix(_on(prefix, device)) if before else None
        expected[before] = [
            torch.cat([plain.forward(_on(ids, device)[None], cache) for ids in case]).cpu() for case in cases
        ]
    del plain
    for dtype in dtypes(device):
        runner = Runner(engine_decoder(config, ends, dtype), token_buckets=packs.buckets, head=head)
        worst = 1.0
        for before, states in expected.items():
            runner.set_prefix(prefix[:before])
            runner.warm_up()
            for case, wanted in zip(cases, states, strict=True):
                what = f"{dtype}, {[len(ids) for ids in case]} tokens behind {before}"
                worst = min(worst, require_alike(what, _checked_rank(runner, head, case, what), wanted, dtype))
        usage = runner.usage
        print(f"{dtype}: cosine {worst:.6f}, {usage.replayed} graphs replayed, {usage.eager} packs eager", flush=True)
        if device == "cuda" and not (usage.replayed and usage.eager):
            raise SystemExit("wrong: both ways through the runner were to be tried")


def _checked_rank(runner: Runner, head: Head, prompts: list[Ints], what: str) -> Tensor:
    """The states, once their winners are the definition's."""
    g = torch.Generator().manual_seed(len(prompts))
    user, omega = torch.randn(len(prompts), DIM, generator=g), torch.rand(len(prompts), generator=g)
    found = runner.run(prompts, user.numpy(), omega.numpy())
    assert found.winners is not None
    bias = head.projection.bias
    projection = Projection(head.projection.weight.cpu(), None if bias is None else bias.cpu())
    wanted = project_score_topk_reference(user, found.states, projection, omega, head.vectors.cpu(), None, K)
    if not float((found.winners.scores - wanted.scores).abs().max()) <= SCORE_TOLERANCE:
        raise SystemExit(f"wrong: {what}: scores {found.winners.scores}, required {wanted.scores}")
    return found.states


def _on(ids: Ints, device: str) -> Tensor:
    return torch.from_numpy(ids).to(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry", action="store_true")
    dry = parser.parse_args().dry
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not dry:
        raise SystemExit("no GPU: only --dry runs here")
    began = time.monotonic()
    # TF32 in the expectation would be the larger error.
    torch.backends.cuda.matmul.allow_tf32 = False
    print(f"scorer: largest errors {adversarial(device, 48 if dry else QWEN3_4B.hidden)}", flush=True)
    with kernels_of(device):
        if dry:
            check_forward(TINY, DRY_PACKS, device)
        else:
            check_forward(replace(QWEN3_4B, num_layers=2, vocabulary=4_096), PACKS, device)
    print(f"all right after {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
