"""The frozen LM head against TRL's kernel, whose place it takes on a CPU."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from trl.trainer import utils as trl_utils

from rgalign.training.alignment.frozen_head import frozen_head

FIELDS = ("log_probs", "entropy", "mean_logits", "is_top1")
TOKENS, WIDTH, VOCABULARY = 37, 24, 301
utils: Any = trl_utils


def both(bias: bool, **changes: Any) -> tuple[list[Any], list[Any]]:
    """(ours, TRL's): log-probabilities, entropies, is_top1, mean logits and the state's gradient."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator)
    weight = 0.3 * torch.randn(VOCABULARY, WIDTH, generator=generator)
    offsets = torch.randn(VOCABULARY, generator=generator) if bias else None
    targets = (hidden @ weight.T + (0 if offsets is None else offsets)).argmax(-1)
    targets[::2] = torch.randint(VOCABULARY, targets[::2].shape, generator=generator)
    upstream = torch.randn(TOKENS, generator=generator)
    given = {"temperature": 1.0, "chunk_size": 128, "softcap": None, "scale": 1.0, "outputs": FIELDS} | changes

    def run() -> list[Any]:
        state = hidden.clone().requires_grad_()
        found = utils._ChunkedLogProbFunction.apply(state, weight, offsets, targets, *given.values())
        found[0].backward(upstream)
        return [found[0].detach(), found[1], found[4], found[3], state.grad]

    theirs = run()
    with frozen_head():
        return run(), theirs


@pytest.mark.parametrize("bias", [False, True])
def test_gives_what_trl_gives(bias: bool, plain_head_rows: list[int]) -> None:
    ours, theirs = both(bias)
    assert plain_head_rows == [TOKENS]
    assert 0 < int(ours[2].sum()) < TOKENS
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


def test_in_bfloat16(plain_head_rows: list[int]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = both(bias=False)
    assert plain_head_rows == [TOKENS]
    assert ours[0].dtype == ours[4].dtype == torch.float32
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("changes", [{"softcap": 30.0}, {"scale": 0.5}, {"temperature": 0.7}])
def test_leaves_other_heads_to_trl(changes: dict[str, float], plain_head_rows: list[int]) -> None:
    ours, theirs = both(bias=False, **changes)
    assert not plain_head_rows
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)


def test_leaves_a_head_that_trains_or_is_sharded_to_trl(plain_head_rows: list[int]) -> None:
    hidden, weight, targets = torch.randn(3, 4), torch.randn(5, 4), torch.tensor([0, 4, 2])
    sharded = weight.clone()
    sharded.ds_id = 0  # type: ignore[attr-defined]
    with frozen_head():
        for head in (weight.clone().requires_grad_(), sharded):
            utils._ChunkedLogProbFunction.apply(hidden, head, None, targets, 1.0, 8, None, 1.0, FIELDS)
    assert not plain_head_rows


def test_trl_is_as_it_was_afterwards() -> None:
    kernel = utils._ChunkedLogProbFunction
    with contextlib.suppress(KeyboardInterrupt), frozen_head():
        assert utils._ChunkedLogProbFunction is not kernel
        raise KeyboardInterrupt
    assert utils._ChunkedLogProbFunction is kernel
