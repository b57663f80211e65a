"""The kernels that go over rows, in the interpreter, against their definitions; the custom ops; what is refused.

quantize_rows, add_norm (+ quantize), swiglu (+ quantize), qk_norm_rope.
"""

import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed (the extra `gpu`)")

from rgalign.kernels import add_norm_quantize, qk_norm_rope, quantize_rows, swiglu_quantize
from rgalign.kernels.on_cpu import interpreted

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
needs_kernels = pytest.mark.skipif(
    not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1", reason="needs a GPU or TRITON_INTERPRET=1"
)


@pytest.fixture(autouse=True)
def _kernels() -> Iterator[None]:
    if ON_GPU or os.environ.get("TRITON_INTERPRET") != "1":
        yield
    else:
        with interpreted():
            yield


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def require_codes(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    """Equal scales to float32 rounding; a code may differ by one where a value lies between two."""
    assert expected[0].abs().max() == 127
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=0)
    different = (found[0].int() - expected[0].int()).abs()
    assert different.max() <= 1
    assert different.float().mean() < 0.002


@needs_kernels
@pytest.mark.parametrize("shape", [(1, 1), (3, 70), (2, 576)])
def test_quantize_rows(shape: tuple[int, int]) -> None:
    x = normal(*shape) * 3
    x[-1] *= 1e-30
    if len(x) > 2:
        x[1] = 0
    found = quantize_rows.quantize_rows(x)
    require_codes(found, quantize_rows.quantize_rows_reference(x))
    if len(x) > 2:
        assert found[0][1].abs().max() == 0
        assert found[1][1] == 0


@needs_kernels
def test_e4m3_codes() -> None:
    """A quotient's last bit may turn a code over. The interpreter also loses the carry into the exponent: 1 in 20."""
    x, weight, fp8 = normal(3, 64) * 3, normal(64, seed=1), quantize_rows.FP8
    calls = {
        quantize_rows.quantize_rows(x, fp8): quantize_rows.quantize_rows_reference(x, fp8),
        add_norm_quantize.add_norm_quantize(x.clone(), None, weight, 1e-6, fp8): (
            add_norm_quantize.add_norm_quantize_reference(x.clone(), None, weight, 1e-6, fp8)
        ),
        swiglu_quantize.swiglu_quantize(x, fp8): swiglu_quantize.swiglu_quantize_reference(x, fp8),
    }
    for found, expected in calls.items():
        assert found[0].dtype == expected[0].dtype == fp8
        assert expected[0].float().abs().max() == 448
        torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=0)
        step = (2**-3 * expected[0].float().abs()).clamp_min(2**-9)
        beyond = (found[0].float() - expected[0].float()).abs() > step
        assert beyond.float().mean() <= (0 if ON_GPU else 0.06)


@needs_kernels
def test_halves_round_to_even() -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]], device=DEVICE)
    assert quantize_rows.quantize_rows(x)[0].tolist() == [[127, 0, 2, 2, 0, -2, -2, 126]]


@needs_kernels
def test_rows_of_a_wider_tensor_are_quantised() -> None:
    x = normal(3, 40)[:, :24]
    require_codes(quantize_rows.quantize_rows(x), quantize_rows.quantize_rows_reference(x))


@needs_kernels
@pytest.mark.parametrize(("shape", "dtype"), [((1, 16), None), ((3, 70), torch.float32), ((2, 576), torch.bfloat16)])
def test_add_norm_quantize(shape: tuple[int, int], dtype: torch.dtype | None) -> None:
    delta = None if dtype is None else normal(*shape, seed=1, dtype=dtype)
    weight = 1 + normal(shape[1], seed=2) / 4
    given, other = normal(*shape), normal(*shape)
    found = add_norm_quantize.add_norm_quantize(given, delta, weight, 1e-6)
    require_codes(found, add_norm_quantize.add_norm_quantize_reference(other, delta, weight, 1e-6))
    assert torch.equal(given, other)
    assert torch.equal(given, normal(*shape)) is (delta is None)


@needs_kernels
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_add_norm(dtype: torch.dtype, tolerance: float) -> None:
    delta, weight = normal(3, 70, seed=1, dtype=dtype), 1 + normal(70, seed=2) / 4
    given, other = normal(3, 70), normal(3, 70)
    found = add_norm_quantize.add_norm(given, delta, weight, 1e-5, dtype)
    expected = add_norm_quantize.add_norm_reference(other, delta, weight, 1e-5, dtype)
    theirs = torch.nn.functional.rms_norm(normal(3, 70) + delta.float(), (70,), weight, 1e-5).to(dtype)
    assert found.dtype == dtype
    assert expected.abs().max() > 1
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    torch.testing.assert_close(found, theirs, atol=2 * tolerance, rtol=0)


@needs_kernels
@pytest.mark.parametrize(("width", "dtype"), [(16, torch.float32), (192, torch.float32), (1200, torch.bfloat16)])
def test_swiglu_quantize(width: int, dtype: torch.dtype) -> None:
    gate_up = normal(2, width, dtype=dtype) * 3
    require_codes(swiglu_quantize.swiglu_quantize(gate_up), swiglu_quantize.swiglu_quantize_reference(gate_up))
    found = swiglu_quantize.swiglu(gate_up, torch.float32)
    parts = [gate_up[:, i : i + 8].float() for i in range(0, width, 8)]
    expected = torch.cat([torch.nn.functional.silu(g) * u for g, u in zip(parts[::2], parts[1::2], strict=True)], 1)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=2e-6)


def rope_inputs(head_dim: int, heads: int, kv_heads: int) -> tuple[Tensor, ...]:
    angles = torch.outer(torch.arange(50.0), 100.0 ** (-torch.arange(0, head_dim, 2) / head_dim)).to(DEVICE)
    positions = torch.tensor([0, 49, 7], dtype=torch.int32, device=DEVICE)
    return normal(3, (heads + 2 * kv_heads) * head_dim), positions, angles.cos(), angles.sin()


@needs_kernels
@pytest.mark.parametrize(("head_dim", "heads", "kv_heads"), [(64, 9, 3), (80, 2, 0), (128, 0, 2), (96, 1, 1)])
@pytest.mark.parametrize("norms", [True, False])
def test_qk_norm_rope(head_dim: int, heads: int, kv_heads: int, norms: bool) -> None:
    x, *tables = rope_inputs(head_dim, heads, kv_heads)
    gains = (1 + normal(head_dim, seed=1) / 4, 1 + normal(head_dim, seed=2) / 4) if norms else (None, None)
    found, expected = x.clone(), x.clone()
    qk_norm_rope.qk_norm_rope(found, *tables, *gains, 1e-6, heads, kv_heads)
    qk_norm_rope.qk_norm_rope_reference(expected, *tables, *gains, 1e-6, heads, kv_heads)
    turned = (heads + kv_heads) * head_dim
    assert (expected - x)[:, :turned].abs().max() > 1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert torch.equal(found[:, turned:], x[:, turned:])


def test_the_definition_of_rope_turns_pairs_by_the_angle() -> None:
    x, positions, cos, sin = rope_inputs(64, 2, 1)
    found = x.clone()
    qk_norm_rope.qk_norm_rope_reference(found, positions, cos, sin, None, None, 0.0, 2, 1)
    turns = torch.complex(cos, sin)[positions.long()][:, None]
    heads = x[:, : 3 * 64].reshape(3, 3, 2, 32)
    expected = torch.complex(heads[:, :, 0], heads[:, :, 1]) * turns
    torch.testing.assert_close(found[:, : 3 * 64].view(3, 3, 2, 32)[:, :, 0], expected.real, atol=1e-6, rtol=0)
    torch.testing.assert_close(found[:, : 3 * 64].view(3, 3, 2, 32)[:, :, 1], expected.imag, atol=1e-6, rtol=0)


def test_the_custom_ops() -> None:
    ops, checks = torch.ops.rgalign, {"test_utils": ("test_schema", "test_faketensor")}
    x = normal(3, 32)
    torch.library.opcheck(ops.quantize_rows, (x, torch.int8), **checks)
    for dtype in (torch.int8, torch.float32):
        torch.library.opcheck(ops.add_norm, (x.clone(), normal(3, 32), normal(32), 1e-6, dtype), **checks)
        torch.library.opcheck(ops.swiglu, (x, dtype), **checks)
    given, *tables = rope_inputs(16, 2, 1)
    torch.library.opcheck(ops.qk_norm_rope, (given, *tables, normal(16), normal(16), 1e-6, 2, 1), **checks)


def test_what_is_refused() -> None:
    x = normal(3, 32)
    with pytest.raises(ValueError, match=r"quantize_rows: required a filled \[T, D\] with contiguous rows; received"):
        quantize_rows.quantize_rows(x[:0])
    with pytest.raises(
        ValueError, match=r"add_norm: required contiguous .* received \(3, 32\) torch.float32, \(3, 31\)"
    ):
        add_norm_quantize.add_norm(x, normal(3, 31), normal(32), 1e-6, torch.float32)
    with pytest.raises(ValueError, match=r"swiglu: required .* I a multiple of 8; received \(3, 24\)"):
        swiglu_quantize.swiglu(normal(3, 24), torch.float32)
    given, positions, cos, sin = rope_inputs(16, 2, 1)
    with pytest.raises(ValueError, match=r"qk_norm_rope: required .* both norms or none"):
        qk_norm_rope.qk_norm_rope(given, positions, cos, sin, normal(16), None, 1e-6, 2, 1)
