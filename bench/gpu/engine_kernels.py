"""Each kernel of the forward at Qwen3-4B's shapes: operations or bytes a second beside the measured ceilings.

    python -m rgalign.bench.gpu.engine_kernels --out DIR [--seconds 60] [--tiles FILE] [--dry]      (bench/gpu/run.sh)

Rows in DIR/kernels.jsonl. One timing is a graph of a call on each of LAYERS layers, one after the other, divided by
their number: weights come from memory, not from the cache that the last call filled. Each product is compared with the
definition first. ``torch int8, sums alone`` is ``torch._int_mm`` without scales, so it does less than ours.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rgalign.bench.gpu.check import dtypes, kernels_of, prompts_of
from rgalign.bench.gpu.decoders import QWEN3_4B, TINY
from rgalign.bench.gpu.engine import measure_ceilings
from rgalign.bench.gpu.measure import Rows, gpu_state, in_graph, microseconds, use_tiles
from rgalign.bench.rows import row
from rgalign.kernels.add_norm_quantize import add_norm_quantize
from rgalign.kernels.int8_gemm import int8_gemm, int8_gemm_reference, workspace_size
from rgalign.kernels.int8_gemm_plan import tile_on
from rgalign.kernels.prefix_attention import prefix_attention
from rgalign.kernels.qk_norm_rope import qk_norm_rope
from rgalign.kernels.quantize_rows import quantize_rows
from rgalign.kernels.swiglu_quantize import swiglu_quantize
from rgalign.reasoner.engine.cuda.decoder import rotations
from rgalign.reasoner.engine.cuda.matrix import OPERANDS, as_rows, matrix_of, multiply
from rgalign.reasoner.engine.cuda.pack import Heads, packed
from rgalign.reasoner.engine.decoder_config import DecoderConfig

LAYERS = 8
TOKENS = (192, 384, 2048)  # buckets of one cached prompt, of one uncached, of a full pack
Call = Callable[[int], Any]  # of a layer


@dataclass(frozen=True)
class Kernel:
    """Args: work: operations or bytes of one call; ceilings: of each variant, the measured one's name."""

    name: str
    tokens: int
    work: int
    calls: dict[str, Call]
    ceilings: dict[str, str]


def products(config: DecoderConfig, tokens: int, device: str) -> Iterator[Kernel]:
    """The four of a layer, by ours and by torch's libraries.

    Raises:
        SystemExit: not the definition's product.
    """
    queries, keys = config.num_heads * config.head_dim, 2 * config.num_kv_heads * config.head_dim
    shapes = {
        "qkv": (queries + keys, config.hidden),
        "out": (config.hidden, queries),
        "gate_up": (2 * config.intermediate, config.hidden),
        "down": (config.hidden, config.intermediate),
    }
    g = torch.Generator(device).manual_seed(3)
    for name, (n, k) in shapes.items():
        x = torch.randn(tokens, k, device=device, generator=g).to(torch.bfloat16)
        floats = [torch.randn(n, k, device=device, generator=g).to(torch.bfloat16) for _ in range(LAYERS)]
        calls: dict[str, Call] = {}
        for dtype in dtypes(device):
            rows, matrices = as_rows(x, OPERANDS[dtype]), [matrix_of(each, None, dtype) for each in floats]
            workspace = _workspace(tokens, n, k, device) if dtype == "int8" else None
            calls[dtype if dtype == "int8" else f"torch {dtype}"] = _product(rows, matrices, workspace)
            if dtype == "int8":
                _check_product(rows, matrices[0], workspace)
                calls["torch int8, sums alone"] = _sums(rows.values, [each.weight for each in matrices])
        ceilings: dict[str, str] = {
            variant: next(dtype for dtype in dtypes(device) if dtype in variant) for variant in calls
        }
        yield Kernel(name, tokens, 2 * tokens * n * k, calls, ceilings)


def _product(rows: Any, matrices: Any, workspace: Tensor | None) -> Call:
    return lambda layer: multiply(rows, matrices[layer], torch.bfloat16, workspace)


def _sums(codes: Tensor, weights: list[Tensor]) -> Call:
    return lambda layer: torch._int_mm(codes, weights[layer].T)


def _workspace(tokens: int, n: int, k: int, device: str) -> Tensor:
    splits = tile_on(torch.device(device), tokens, n, k).num_splits
    return torch.zeros(workspace_size(splits, tokens, n), dtype=torch.int32, device=device)


def _check_product(rows: Any, matrix: Any, workspace: Tensor | None) -> None:
    assert rows.scales is not None
    operands = (rows.values, rows.scales, matrix.weight, matrix.scales, None, torch.float32)
    found, expected = int8_gemm(*operands, workspace), int8_gemm_reference(*operands)
    error = float((found - expected).abs().max() / expected.abs().max())
    if not error <= 1e-6:  # sums are exact; the scales' products are rounded alike
        raise SystemExit(f"wrong: W8A8 product {tuple(rows.values.shape)} x {tuple(matrix.weight.shape)}: {error}")


def passes(config: DecoderConfig, tokens: int, device: str) -> Iterator[Kernel]:
    """What reads and writes each value once: bytes are counted, against the copy's."""
    g = torch.Generator(device).manual_seed(4)

    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(*shape, device=device, generator=g).to(dtype)

    def only(name: str, size: int, call: Call) -> Kernel:
        return Kernel(name, tokens, size, {"int8": call}, {"int8": "copy"})

    hidden, inner, queries = config.hidden, config.intermediate, config.num_heads * config.head_dim
    residual = [normal(tokens, hidden, dtype=torch.float32) for _ in range(LAYERS)]
    gate_up = [normal(tokens, 2 * inner) for _ in range(LAYERS)]
    attended = [normal(tokens, queries) for _ in range(LAYERS)]
    weight = torch.ones(hidden, device=device)
    yield only("norm", 5 * tokens * hidden, lambda i: add_norm_quantize(residual[i], None, weight, config.eps))
    yield only("swiglu", 5 * tokens * inner, lambda i: swiglu_quantize(gate_up[i]))
    yield only("quantize", 3 * tokens * queries, lambda i: quantize_rows(attended[i]))
    keys = config.num_kv_heads * config.head_dim
    qkv = [normal(tokens, queries + 2 * keys) for _ in range(LAYERS)]
    steps = torch.arange(0, config.head_dim, 2, device=device) / config.head_dim
    positions = torch.arange(tokens, dtype=torch.int32, device=device)
    turned, norm = rotations(1e6**-steps, tokens), torch.ones(config.head_dim, device=device)
    heads = (config.num_heads, config.num_kv_heads)
    yield only(
        "rotation",
        4 * tokens * (queries + keys),
        lambda i: qk_norm_rope(qkv[i], positions, *turned, norm, norm, config.eps, *heads),
    )


def attention(config: DecoderConfig, length: int, prefix: int, device: str) -> Kernel:
    """One prompt over its prefix; SDPA gets keys and values that are together and repeated already."""
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    g = torch.Generator(device).manual_seed(5)
    heads = Heads(config.num_heads, config.num_kv_heads)
    pack = packed(prompts_of([length], config.vocabulary, 5), prefix, heads, torch.device(device))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, generator=g).to(torch.bfloat16)

    qkv = [normal(length, queries + 2 * keys) for _ in range(LAYERS)]
    cached = [normal(prefix, 2 * keys) if prefix else None for _ in range(LAYERS)]
    sizes = (config.num_heads, config.num_kv_heads, heads.block_m(False))

    def ours(i: int) -> Tensor:
        q, kv = qkv[i][:, :queries], qkv[i][:, queries:]
        return prefix_attention(q, kv, cached[i], pack.cu_seqlens, pack.cu_seqlens, pack.tiles, *sizes)

    shape = (1, config.num_heads, -1, config.head_dim)
    q, k, v = (normal(size, queries).view(size, *shape[1::2]).transpose(0, 1)[None] for size in (
        length, prefix + length, prefix + length))  # fmt: skip
    mask = torch.ones(length, prefix + length, dtype=torch.bool, device=device).tril(prefix)

    def sdpa(i: int) -> Tensor:
        if prefix:
            return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    seen = length * prefix + length * (length + 1) // 2
    calls: dict[str, Call] = {"bf16": ours, "torch SDPA bf16": sdpa}
    return Kernel(f"attention behind {prefix}", length, 4 * queries * seen, calls, dict.fromkeys(calls, "bf16"))


def measure(kernel: Kernel, ceilings: dict[str, float], device: str, dry: bool) -> Iterator[dict[str, Any]]:
    layers = 1 if dry else LAYERS
    calls = {name: _over_layers(call, layers) for name, call in kernel.calls.items()}
    if device == "cuda":
        calls = {name: in_graph(call) for name, call in calls.items()}
    state = gpu_state()
    for variant, times in microseconds(calls, device).items():
        ceiling = kernel.ceilings[variant]
        each = {name: round(value / layers, 3) for name, value in times.items()}
        per_second = kernel.work / (each["median"] * 1e-6)
        yield row(
            "gpu kernels",
            step=kernel.name,
            variant=variant if variant.startswith("torch") else f"rgalign {variant}",
            tokens=kernel.tokens,
            call_us=each,
            what="bytes" if ceiling == "copy" else "operations",
            tera_per_s=round(per_second / 1e12, 3),
            share_of_ceiling=round(per_second / ceilings[ceiling], 4),
            gpu_state=state,
            dry=dry,
        )


def _over_layers(call: Call, layers: int) -> Callable[[], Any]:
    return lambda: [call(layer) for layer in range(layers)]


def kernels(config: DecoderConfig, device: str, dry: bool) -> Iterator[Kernel]:
    for tokens in (17,) if dry else TOKENS:
        yield from products(config, tokens, device)
        yield from passes(config, tokens, device)
    for length, prefix in ((9, 5),) if dry else ((170, 180), (350, 0)):
        yield attention(config, length, prefix, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60, help="no further kernel is begun after this long")
    parser.add_argument("--tiles", type=Path, help="of gpu.tune, in place of the committed table")
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    began = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not arguments.dry:
        raise SystemExit("no GPU: only --dry runs here")
    use_tiles(arguments.tiles)
    rows, ceilings = Rows(arguments.out / "kernels.jsonl"), measure_ceilings(device, arguments.dry)
    with kernels_of(device):
        for kernel in kernels(TINY if arguments.dry else QWEN3_4B, device, arguments.dry):
            if time.monotonic() - began > arguments.seconds:
                print(f"out of time before {kernel.name} of {kernel.tokens}", flush=True)
                break
            for each in measure(kernel, ceilings, device, arguments.dry):
                rows.add(each, "step", "tokens", "variant", "call_us", "tera_per_s", "share_of_ceiling")


if __name__ == "__main__":
    main()
