"""W8A8 matrix product: int8 codes with a scale per token, int8 weights with a scale per channel, exact int32 sums.

    out[m, n] = (sum_k codes[m, k] weight[n, k]) row_scale[m] channel_scale[n] + bias[n]     (+ residual[m, n])

Where the result has fewer tiles than the GPU has multiprocessors, the inner dimension is cut as well (split-K): each
program leaves its int32 partial sums, and the last to arrive adds them. Integer sums have no order, so the bits depend
on neither the tile, the split nor the batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rgalign.kernels.int8_gemm_plan import MAX_PROGRAMS, Tile, tile_on
from rgalign.kernels.on_cpu import kernels_on_cpu


def int8_gemm_reference(
    codes: Tensor, row_scales: Tensor, weight: Tensor, channel_scales: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The definition; sums below 2^53 are exact in float64."""
    out = (codes.double() @ weight.double().T).float() * row_scales[:, None] * channel_scales
    return (out if bias is None else out + bias).to(dtype)


@triton.jit
def _int8_gemm_kernel(
    codes_ptr,  # [M, K] int8
    row_scales_ptr,  # [M] float32
    weight_ptr,  # [N, K] int8
    channel_scales_ptr,  # [N] float32
    bias_ptr,  # [N] float32
    out_ptr,  # [M, N]; with ADD the residual, float32, changed
    counters_ptr,  # [tiles] int32, zero before and after
    partials_ptr,  # [NUM_SPLITS, M, N] int32
    M,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ADD: tl.constexpr,
):
    # Neighbouring programs share columns: a weight comes from memory once and for the other tokens from L2.
    tile = tl.program_id(0)
    split = tl.program_id(1)
    tiles_m = tl.cdiv(M, BLOCK_M)
    m = tile % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile // tiles_m * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    DEPTH: tl.constexpr = (K + BLOCK_K * NUM_SPLITS - 1) // (BLOCK_K * NUM_SPLITS) * BLOCK_K
    # Rows beyond the last wrap round instead of being masked; they are not stored.
    codes_at = codes_ptr + (m % M).to(tl.int64)[:, None] * K + k[None, :]
    weight_at = weight_ptr + (n % N).to(tl.int64)[None, :] * K + k[:, None]
    first = split * DEPTH
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for start in range(first, tl.minimum(first + DEPTH, K), BLOCK_K):
        if K % BLOCK_K == 0:
            a = tl.load(codes_at + start)
            b = tl.load(weight_at + start)
        else:
            a = tl.load(codes_at + start, (start + k < K)[None, :], 0)
            b = tl.load(weight_at + start, (start + k < K)[:, None], 0)
        sums = tl.dot(a, b, sums, out_dtype=tl.int32)
    mask = (m < M)[:, None] & (n < N)[None, :]
    # Within a tile 32 bits suffice: 64-bit addresses of every element would not fit the registers beside the sums.
    corner = (tile % tiles_m * BLOCK_M).to(tl.int64) * N + tile // tiles_m * BLOCK_N
    at = tl.arange(0, BLOCK_M)[:, None] * N + tl.arange(0, BLOCK_N)[None, :]
    is_last = True
    if NUM_SPLITS > 1:
        size = tl.cast(M, tl.int64) * N
        partials_ptr += corner
        tl.store(partials_ptr + split * size + at, sums, mask)
        tl.debug_barrier()  # every thread's partial sums are written before one thread says so
        arrived = tl.atomic_add(counters_ptr + tile, 1, sem="acq_rel", scope="gpu")
        is_last = arrived == NUM_SPLITS - 1
        if is_last:
            tl.store(counters_ptr + tile, 0)
            for other in range(NUM_SPLITS):
                # Past L1, which may hold what this address was before.
                partial = tl.load(partials_ptr + other * size + at, mask, 0, cache_modifier=".cg")
                sums += tl.where(other == split, 0, partial)
    if is_last:
        out = sums.to(tl.float32) * tl.load(row_scales_ptr + m, m < M, 0.0)[:, None]
        out *= tl.load(channel_scales_ptr + n, n < N, 0.0)[None, :]
        if HAS_BIAS:
            out += tl.load(bias_ptr + n, n < N, 0.0)[None, :]
        if ADD:
            out += tl.load(out_ptr + corner + at, mask, 0.0)
        tl.store(out_ptr + corner + at, out.to(out_ptr.dtype.element_ty), mask)


def launch(
    out: Tensor,
    codes: Tensor,
    row_scales: Tensor,
    weight: Tensor,
    channel_scales: Tensor,
    bias: Tensor | None,
    workspace: Tensor | None,
    add: bool,
    tile: Tile | None = None,
) -> None:
    """Writes the product to ``out`` or adds it there; ``tile`` overrules the plan, for tests and tuning."""
    (num_rows, depth), num_columns = codes.shape, len(weight)
    if tile is None:
        tile = tile_on(codes.device, num_rows, num_columns, depth)
    split = tile.num_splits > 1
    if split and (workspace is None or len(workspace) < workspace_size(tile.num_splits, num_rows, num_columns)):
        size = workspace_size(tile.num_splits, num_rows, num_columns)
        workspace = torch.zeros(size, dtype=torch.int32, device=codes.device)
    _int8_gemm_kernel[(tile.programs(num_rows, num_columns), tile.num_splits)](
        codes,
        row_scales,
        weight,
        channel_scales,
        channel_scales if bias is None else bias,
        out,
        workspace if split else row_scales,
        workspace[MAX_PROGRAMS:] if split and workspace is not None else row_scales,
        num_rows,
        N=num_columns,
        K=depth,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        NUM_SPLITS=tile.num_splits,
        HAS_BIAS=bias is not None,
        ADD=add,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def workspace_size(num_splits: int, num_rows: int, num_columns: int) -> int:
    """int32 values of the counters and the partial sums of a split product."""
    return MAX_PROGRAMS + num_splits * num_rows * num_columns


def _multiply(codes, row_scales, weight, channel_scales, bias, dtype, workspace) -> Tensor:
    out = torch.empty(len(codes), len(weight), dtype=dtype, device=codes.device)
    launch(out, codes, row_scales, weight, channel_scales, bias, workspace, False)
    return out


OPERANDS = "Tensor codes, Tensor row_scales, Tensor weight, Tensor channel_scales, Tensor? bias"
SCHEMA = f"({OPERANDS}, ScalarType dtype, Tensor(a!)? workspace) -> Tensor"
SCHEMA_ADD = f"(Tensor(a!) residual, {OPERANDS}, Tensor(b!)? workspace) -> ()"


@torch.library.custom_op("rgalign::int8_gemm", mutates_args=("workspace",), device_types="cuda", schema=SCHEMA)
def _op(codes, row_scales, weight, channel_scales, bias, dtype, workspace) -> Tensor:
    return _multiply(codes, row_scales, weight, channel_scales, bias, dtype, workspace)


@_op.register_kernel("cpu")
def _on_cpu(codes, row_scales, weight, channel_scales, bias, dtype, workspace) -> Tensor:
    if kernels_on_cpu():
        return _multiply(codes, row_scales, weight, channel_scales, bias, dtype, workspace)
    return int8_gemm_reference(codes, row_scales, weight, channel_scales, bias, dtype)


@_op.register_fake
def _fake(codes, row_scales: Tensor, weight, channel_scales, bias, dtype, workspace) -> Tensor:
    return row_scales.new_empty(codes.shape[0], weight.shape[0], dtype=dtype)


@torch.library.custom_op(
    "rgalign::int8_gemm_add", mutates_args=("residual", "workspace"), device_types="cuda", schema=SCHEMA_ADD
)
def _op_add(residual, codes, row_scales, weight, channel_scales, bias, workspace) -> None:
    launch(residual, codes, row_scales, weight, channel_scales, bias, workspace, True)


@_op_add.register_kernel("cpu")
def _add_on_cpu(residual, codes, row_scales, weight, channel_scales, bias, workspace) -> None:
    if kernels_on_cpu():
        launch(residual, codes, row_scales, weight, channel_scales, bias, workspace, True)
    else:
        residual += int8_gemm_reference(codes, row_scales, weight, channel_scales, bias, torch.float32)


@_op_add.register_fake
def _fake_add(residual, codes, row_scales, weight, channel_scales, bias, workspace) -> None:
    return None


def int8_gemm(
    codes: Tensor,
    row_scales: Tensor,
    weight: Tensor,
    channel_scales: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    workspace: Tensor | None = None,
) -> Tensor:
    """The product, scaled, with its bias.

    Args:
        codes: [M, K] int8, contiguous, M at least 1, K below 2^17 so that no sum overflows.
        row_scales: [M] float32; channel_scales: [N] float32; bias: [N] float32.
        weight: [N, K] int8, contiguous.
        dtype: of the result.
        workspace: int32 zeros, at least ``workspace_size``, for products that are cut along K; it is zero where it
            matters when the call ends, so the next may have it. Allocated when absent or too small.

    Returns:
        [M, N].

    Raises:
        ValueError: a shape, dtype or stride that is not that.
    """
    _check(codes, row_scales, weight, channel_scales, bias)
    out: Tensor = _op(codes, row_scales, weight, channel_scales, bias, dtype, workspace)
    return out


def int8_gemm_add(
    residual: Tensor,
    codes: Tensor,
    row_scales: Tensor,
    weight: Tensor,
    channel_scales: Tensor,
    bias: Tensor | None,
    workspace: Tensor | None = None,
) -> None:
    """Adds the product of :func:`int8_gemm` to ``residual``, [M, N] float32, contiguous."""
    _check(codes, row_scales, weight, channel_scales, bias)
    shape = (len(codes), len(weight))
    if residual.shape != shape or residual.dtype != torch.float32 or not residual.is_contiguous():
        received = f"{tuple(residual.shape)} {residual.dtype}"
        raise ValueError(f"int8_gemm_add: required a contiguous float32 residual {shape}; received {received}")
    _op_add(residual, codes, row_scales, weight, channel_scales, bias, workspace)


def _check(codes: Tensor, row_scales: Tensor, weight: Tensor, channel_scales: Tensor, bias: Tensor | None) -> None:
    fits = codes.dim() == weight.dim() == 2 and codes.numel() > 0 and weight.shape[1] == codes.shape[1] < 1 << 17
    fits = fits and codes.is_contiguous() and weight.is_contiguous()
    fits = fits and row_scales.shape == codes.shape[:1] and channel_scales.shape == weight.shape[:1]
    fits = fits and (bias is None or bias.shape == weight.shape[:1])
    if not fits or {codes.dtype, weight.dtype} != {torch.int8}:
        shapes = [
            None if each is None else tuple(each.shape) for each in (codes, row_scales, weight, channel_scales, bias)
        ]
        required = "required contiguous int8 [M, K] and [N, K], K below 131072, scales [M] and [N], bias [N]"
        raise ValueError(f"int8_gemm: {required}; received {shapes}, {codes.dtype} and {weight.dtype}")
