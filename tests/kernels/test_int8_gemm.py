"""The W8A8 product in the interpreter against its definition, whatever the tile and split; the table; the ops."""

import json
import os
from dataclasses import astuple, replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed (the extra `gpu`)")

from rgalign.kernels.int8_gemm import int8_gemm, int8_gemm_add, int8_gemm_reference, launch, workspace_size
from rgalign.kernels.int8_gemm_plan import (
    MAX_PROGRAMS,
    SMALL,
    TABLE,
    TILES,
    Tile,
    candidates,
    modelled_seconds,
    modelled_tile,
    tile_for,
)
from rgalign.kernels.on_cpu import interpreted

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
needs_kernels = pytest.mark.skipif(
    not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1", reason="needs a GPU or TRITON_INTERPRET=1"
)
SHAPES_4B = ((6144, 2560), (2560, 4096), (19456, 2560), (2560, 9728), (4096, 2560), (2048, 2560))


def operands(m: int, n: int, k: int, bias: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    g = torch.Generator().manual_seed(m + n + k)
    codes, weight = (torch.randint(-127, 128, shape, generator=g, dtype=torch.int8) for shape in ((m, k), (n, k)))
    scales = [torch.rand(size, generator=g) / 127 for size in (m, n)]
    added = torch.randn(n, generator=g).to(DEVICE) if bias else None
    return codes.to(DEVICE), scales[0].to(DEVICE), weight.to(DEVICE), scales[1].to(DEVICE), added


def product(given: tuple[Tensor | None, ...], tile: Tile, dtype: torch.dtype = torch.float32) -> Tensor:
    codes, weight = given[0], given[2]
    assert codes is not None
    assert weight is not None
    out = torch.empty(len(codes), len(weight), dtype=dtype, device=DEVICE)
    launch(out, *given, None, False, tile)  # type: ignore[arg-type]
    return out


@needs_kernels
@pytest.mark.parametrize(("m", "n", "k"), [(1, 16, 16), (17, 48, 80), (5, 40, 200)])
@pytest.mark.parametrize("bias", [True, False])
def test_int8_gemm(m: int, n: int, k: int, bias: bool) -> None:
    given = operands(m, n, k, bias)
    expected = int8_gemm_reference(*given, torch.float32)
    assert expected.abs().max() > 0.01
    for splits in (1, 2, 3):
        found = product(given, replace(SMALL, block_n=16, num_splits=splits))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@needs_kernels
def test_the_bits_depend_on_neither_tile_nor_split_nor_batch() -> None:
    given = operands(20, 32, 512)
    first = product(given, Tile(16, 16, 32, 4, 2))
    assert torch.equal(product(given, Tile(32, 32, 128, 4, 2)), first)
    assert torch.equal(product(given, Tile(32, 16, 64, 4, 2, num_splits=8)), first)
    alone = (given[0][7:8].contiguous(), given[1][7:8].contiguous(), *given[2:])
    assert torch.equal(product(alone, Tile(16, 32, 64, 4, 2, num_splits=3)), first[7:8])


@needs_kernels
def test_the_largest_sums_do_not_overflow() -> None:
    codes = torch.full((1, 4096), 127, dtype=torch.int8, device=DEVICE)
    one = torch.ones(1, device=DEVICE)
    found = product((codes, one, codes, one, None), Tile(16, 16, 1024, 4, 2, num_splits=2))
    assert found.item() == 127 * 127 * 4096


@needs_kernels
def test_a_workspace_serves_one_product_after_the_other() -> None:
    workspace = torch.zeros(workspace_size(2, 20, 48), dtype=torch.int32, device=DEVICE)
    residual = torch.randn(20, 48, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    expected = residual.clone()
    for k in (64, 128):
        given = operands(20, 48, k)
        launch(residual, *given, workspace, True, replace(SMALL, num_splits=2))
        expected += int8_gemm_reference(*given, torch.float32)
        assert workspace[:MAX_PROGRAMS].abs().max() == 0
        assert workspace[MAX_PROGRAMS:].abs().max() > 0
    torch.testing.assert_close(residual, expected, rtol=1e-5, atol=1e-5)


@needs_kernels
def test_the_custom_ops() -> None:
    given, checks = operands(3, 16, 32), {"test_utils": ("test_schema", "test_faketensor")}
    with interpreted():
        torch.library.opcheck(torch.ops.rgalign.int8_gemm, (*given, torch.float16, None), **checks)
        torch.library.opcheck(
            torch.ops.rgalign.int8_gemm_add, (torch.zeros(3, 16, device=DEVICE), *given, None), **checks
        )
        residual = torch.ones(3, 16, device=DEVICE)
        int8_gemm_add(residual, *given)
        through = int8_gemm(*given, torch.float32)
    torch.testing.assert_close(residual, 1 + through, rtol=0, atol=1e-6)
    defined = int8_gemm(*given, torch.float32)
    torch.testing.assert_close(defined, through, rtol=1e-6, atol=1e-6)


def test_what_is_refused() -> None:
    codes, row_scales, weight, channel_scales, bias = operands(3, 16, 32)
    with pytest.raises(ValueError, match=r"int8_gemm: required contiguous int8 .* received \[\(3, 16\)"):
        int8_gemm(codes[:, :16], row_scales, weight, channel_scales, bias, torch.float32)
    with pytest.raises(ValueError, match="torch.int8 and torch.float32"):
        int8_gemm(codes, row_scales, weight.float(), channel_scales, bias, torch.float32)
    with pytest.raises(ValueError, match=r"int8_gemm_add: required a contiguous float32 residual \(3, 16\); received"):
        int8_gemm_add(torch.zeros(3, 15), codes, row_scales, weight, channel_scales, bias)


def test_the_table_holds_what_the_model_may_choose() -> None:
    """Every tile of the table is compiled and looked at in test_engine_binaries."""
    table = json.loads(TABLE.read_text())
    for gpu, entry in table["gpus"].items():
        assert entry["source"] in ("model", "measured")
        assert set(entry["tiles"]) >= {f"{n}x{k}" for n, k in SHAPES_4B}
        for shape, rows in entry["tiles"].items():
            n, k = map(int, shape.split("x"))
            for bucket, values in rows.items():
                tile = tile_for(int(bucket), n, k, gpu, 132)
                assert astuple(tile) == tuple(values)
                assert tile in candidates(int(bucket), n, k)
                assert replace(tile, num_splits=1) in TILES


def test_a_bucket_is_the_smallest_that_holds_the_rows() -> None:
    gpu = next(iter(json.loads(TABLE.read_text())["gpus"]))
    assert tile_for(129, 2560, 9728, gpu, 132) == tile_for(192, 2560, 9728, gpu, 132)
    assert tile_for(10**6, 2560, 9728, gpu, 132) == modelled_tile(10**6, 2560, 9728, 132)
    assert tile_for(64, 48, 64, gpu, 132) == modelled_tile(64, 48, 64, 132)


def test_the_model_splits_where_multiprocessors_would_idle() -> None:
    assert modelled_tile(192, 2560, 9728, 132).num_splits > 1
    assert modelled_tile(2048, 19456, 2560, 132).num_splits == 1
    for m, n, k in ((1, 16, 16), (170, 6144, 2560), (2048, 2560, 9728)):
        chosen = modelled_tile(m, n, k, 132)
        assert all(
            modelled_seconds(chosen, m, n, k, 132) <= modelled_seconds(t, m, n, k, 132) for t in candidates(m, n, k)
        )
