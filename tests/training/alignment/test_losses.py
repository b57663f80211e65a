"""The losses against their written definitions; a batch in parts is the whole batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rgalign.training.alignment.losses import contrastive_loss, preference_loss


def by_definition(h: Tensor, e: Tensor, negatives: Tensor, masked: Tensor, tau: float) -> Tensor:
    """Eq. 11 in loops."""
    losses = []
    for row in range(len(h)):
        own = torch.exp(torch.cosine_similarity(h[row], e[row], dim=0) / tau)
        others = [
            torch.exp(torch.cosine_similarity(h[row], negatives[column], dim=0) / tau)
            for column in range(len(negatives))
            if not masked[row, column]
        ]
        losses.append(-torch.log(own / (own + sum(others))))
    return torch.stack(losses)


def test_contrastive_loss_is_equation_11() -> None:
    torch.manual_seed(0)
    h, e, negatives = torch.randn(5, 7).double(), torch.randn(5, 7).double(), torch.randn(9, 7).double()
    masked = torch.rand(5, 9) < 0.3
    expected = by_definition(h, e, negatives, masked, 0.05)
    assert expected.min() > 1e-6
    torch.testing.assert_close(contrastive_loss(h, e, negatives, masked, tau=0.05), expected)


def test_a_session_without_negatives_has_no_loss_and_finite_gradients() -> None:
    h = torch.randn(2, 4, requires_grad=True)
    masked = torch.ones(2, 3, dtype=torch.bool)
    loss = contrastive_loss(h, torch.randn(2, 4), torch.randn(3, 4), masked, tau=0.05)
    loss.sum().backward()
    assert torch.equal(loss, torch.zeros(2))
    assert h.grad is not None
    assert torch.isfinite(h.grad).all()


def test_dpo_starts_at_ln_2_and_follows_equation_10() -> None:
    owner = torch.arange(3)
    equal = preference_loss(torch.zeros(3), torch.zeros(3), owner, beta=0.1)
    torch.testing.assert_close(equal, torch.full((3,), math.log(2)))
    chosen, rejected = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.5, 3.0, -4.0])
    expected = -torch.log(torch.sigmoid(0.1 * (chosen - rejected)))
    torch.testing.assert_close(preference_loss(chosen, rejected, owner, beta=0.1), expected)


def test_softmax_dpo_with_several_rejected() -> None:
    chosen, rejected = torch.tensor([0.3, -1.0]), torch.tensor([0.1, -0.7, 2.0])
    owner = torch.tensor([0, 1, 0])
    gaps = [(0.1 - 0.3, 2.0 - 0.3), (-0.7 + 1.0,)]
    expected = [-math.log(1 / (1 + sum(math.exp(0.5 * gap) for gap in row))) for row in gaps]
    torch.testing.assert_close(preference_loss(chosen, rejected, owner, beta=0.5), torch.tensor(expected))


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_gradients_push_chosen_up_and_rejected_down(beta: float) -> None:
    chosen, rejected = torch.zeros(2, requires_grad=True), torch.zeros(5, requires_grad=True)
    preference_loss(chosen, rejected, torch.tensor([0, 0, 0, 1, 1]), beta=beta).sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert (chosen.grad < 0).all()
    assert (rejected.grad > 0).all()
