"""Which parameters decay, and the learning rate of every step."""

import pytest
import torch
from torch import nn

from rgalign.training.optimiser import OptimiserConfig, adamw, learning_rate, set_learning_rate, split_parameters


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.position = nn.Parameter(torch.randn(3, 4))
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.fixed = nn.Parameter(torch.ones(2), requires_grad=False)


def test_only_weights_of_linear_layers_decay():
    towers = Towers()
    decayed, plain = split_parameters(towers)
    assert [id(parameter) for parameter in decayed] == [id(towers.linear.weight)]
    assert len(plain) == 6  # table, linear's bias, norm's two, position, scale
    optimizer = adamw(towers, OptimiserConfig(learning_rate=0.1, weight_decay=0.5))
    before = {name: parameter.detach().clone() for name, parameter in towers.named_parameters()}
    for parameter in towers.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moved = {name for name, parameter in towers.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {"linear.weight"}
    torch.testing.assert_close(towers.linear.weight, before["linear.weight"] * (1 - 0.1 * 0.5))


def test_schedules():
    cosine = OptimiserConfig(learning_rate=2.0, schedule="cosine")
    assert [learning_rate(cosine, step, 4, 0.1) for step in (0, 2, 4, 9)] == pytest.approx([2.0, 1.0, 0.0, 0.0])
    plateau = OptimiserConfig(learning_rate=2.0)
    assert learning_rate(plateau, 100, 4, 0.1) == pytest.approx(0.2)
    assert learning_rate(OptimiserConfig(learning_rate=2.0, schedule="constant"), 3, 4, 0.1) == 2.0


def test_every_group_gets_the_rate():
    optimizer = adamw(Towers(), OptimiserConfig())
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
