"""Attention over a shared prefix in the interpreter against its definition, torch's SDPA."""

import os
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed (the extra `gpu`)")

from rgalign.kernels.on_cpu import interpreted
from rgalign.kernels.prefix_attention import (
    block_rows,
    prefix_attention,
    prefix_attention_reference,
    query_tiles,
)

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
needs_kernels = pytest.mark.skipif(
    not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1", reason="needs a GPU or TRITON_INTERPRET=1"
)


@dataclass
class Inputs:
    q: Tensor
    kv: Tensor
    prefix: Tensor | None
    queries: Tensor
    keys: Tensor
    tiles: Tensor
    heads: int
    kv_heads: int
    block_m: int

    def defined(self) -> Tensor:
        return prefix_attention_reference(
            self.q, self.kv, self.prefix, self.queries, self.keys, self.heads, self.kv_heads
        )

    def found(self) -> Tensor:
        arguments = (self.q, self.kv, self.prefix, self.queries, self.keys, self.tiles)
        with interpreted():
            return prefix_attention(*arguments, self.heads, self.kv_heads, self.block_m)


def offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).to(DEVICE)


def inputs(
    lengths: list[int],
    prefix: int,
    dim: int,
    heads: int,
    kv_heads: int,
    last_only: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Inputs:
    g = torch.Generator().manual_seed(dim + heads)
    queries = [min(1, size) for size in lengths] if last_only else lengths
    fused = torch.randn(sum(lengths) + 2, (heads + 2 * kv_heads) * dim, generator=g).to(dtype).to(DEVICE)
    block_m = block_rows(heads, kv_heads, last_only)
    tiles = [*query_tiles(queries, heads // kv_heads, block_m), (-1, 0)]
    q = (
        torch.randn(sum(queries), heads * dim, generator=g).to(dtype).to(DEVICE)
        if last_only
        else fused[:, : heads * dim]
    )
    given = torch.randn(prefix, 2 * kv_heads * dim, generator=g).to(dtype).to(DEVICE) if prefix else None
    return Inputs(
        q,
        fused[:, heads * dim :],
        given,
        offsets(queries),
        offsets(lengths),
        torch.tensor(tiles, dtype=torch.int32, device=DEVICE),
        heads,
        kv_heads,
        block_m,
    )


CASES = {
    "head_dim 64, groups of 3": ([5, 1, 9], 7, 64, 3, 1),
    "head_dim 80": ([4, 3], 3, 80, 2, 2),
    "head_dim 96": ([4, 3], 0, 96, 2, 1),
    "head_dim 128, blocks of keys": ([40, 2], 35, 128, 4, 2),
    "groups of 7, an empty sequence": ([3, 0, 2], 5, 16, 7, 1),
    "one token": ([1], 0, 32, 1, 1),
}


@needs_kernels
@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_prefix_attention(name: str, last_only: bool) -> None:
    given = inputs(*CASES[name], last_only=last_only)
    size = int(given.queries[-1])
    expected = given.defined()[:size]
    assert expected.std() > 0.1
    torch.testing.assert_close(given.found()[:size], expected, atol=2e-6, rtol=1e-5)


@needs_kernels
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_half_precision(dtype: torch.dtype, tolerance: float) -> None:
    given = inputs([9, 3], 5, 32, 2, 1, dtype=dtype)
    torch.testing.assert_close(given.found()[:12], given.defined()[:12], atol=tolerance, rtol=0)


@needs_kernels
def test_bits_of_a_query_depend_on_its_sequence_only() -> None:
    given = inputs([6, 40, 3], 20, 32, 2, 1)
    rows = slice(6, 46)
    whole = given.found()[rows]
    alone = Inputs(
        given.q[rows], given.kv[rows], given.prefix, offsets([40]), offsets([40]),
        torch.tensor(query_tiles([40], 2, given.block_m), dtype=torch.int32, device=DEVICE), 2, 1, given.block_m,
    )  # fmt: skip
    assert torch.equal(alone.found(), whole)


@needs_kernels
def test_large_scores_do_not_overflow() -> None:
    given = inputs([7], 4, 16, 2, 1)
    given.q = given.q * 1e3
    expected = given.defined()[:7]
    assert expected.isfinite().all()
    torch.testing.assert_close(given.found()[:7], expected, atol=1e-5, rtol=1e-4)


def test_the_definition_sees_no_later_token_and_all_of_the_prefix() -> None:
    given = inputs([6, 4], 3, 16, 2, 1)
    before = given.defined()
    given.kv[5] += 1
    after = given.defined()
    assert torch.equal(after[:5], before[:5])
    assert not torch.equal(after[5], before[5])
    assert torch.equal(after[6:10], before[6:10])
    assert given.prefix is not None
    given.prefix[2] += 1
    assert (given.defined()[:10] != after[:10]).any(dim=1).all()


def test_query_tiles_cover_every_query_once() -> None:
    tiles = query_tiles([5, 0, 17, 16], 4, 64)
    assert sorted(tiles) == [(0, 0), (2, 0), (2, 16), (3, 0)]
    assert tiles[0] == (2, 16)


@needs_kernels
def test_the_custom_op() -> None:
    given = inputs([3, 2], 2, 16, 2, 1)
    arguments = (given.q[:5], given.kv[:5], given.prefix, given.queries, given.keys, given.tiles, 2, 1, given.block_m)
    with interpreted():
        torch.library.opcheck(
            torch.ops.rgalign.prefix_attention, arguments, test_utils=("test_schema", "test_faketensor")
        )


def test_what_is_refused() -> None:
    given = inputs([3, 2], 2, 16, 2, 1)
    given.heads = 3
    with pytest.raises(ValueError, match=r"prefix_attention: required head_dim up to 128.*received q \(7, 32\)"):
        given.found()
    wide = inputs([2], 0, 144, 1, 1)
    with pytest.raises(ValueError, match="required head_dim up to 128"):
        wide.found()
