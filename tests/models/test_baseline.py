"""AutoInt and the mixture of experts against their definitions."""

import pytest
import torch

from rgalign.errors import ConfigError
from rgalign.models import BaselineConfig
from rgalign.models.baseline import AutoIntLayer, MixtureOfExperts


@pytest.mark.parametrize("variant", ["original", "fuxictr"])
def test_autoint_is_its_definition(variant: str) -> None:
    torch.manual_seed(0)
    layer = AutoIntLayer(5, 2, 3, variant, dropout=0.5).eval()
    fields = torch.randn(4, 7, 5)
    dense = fields @ layer.project.weight.T
    if variant == "original":
        dense = torch.relu(dense + layer.project.bias)
    else:
        assert layer.project.bias is None
    query, key, value, residual = dense.split(6, dim=-1)
    heads = []
    for head in (slice(0, 3), slice(3, 6)):
        logits = query[..., head] @ key[..., head].transpose(1, 2)
        weights = (logits / 3**0.5 if variant == "original" else logits).softmax(dim=-1)
        heads.append(weights @ value[..., head])
    expected = torch.relu(torch.cat(heads, dim=-1) + residual)
    if variant == "original":
        expected = (expected - expected.mean(-1, keepdim=True)) / (
            expected.var(-1, correction=0, keepdim=True) + 1e-5
        ).sqrt()
    assert expected.abs().sum() > 1
    torch.testing.assert_close(layer(fields), expected, atol=1e-5, rtol=0)


def test_each_row_uses_its_own_gate() -> None:
    torch.manual_seed(0)
    mixture = MixtureOfExperts(BaselineConfig(num_experts=4, expert_hidden=(6, 3)), 5, num_gates=3).eval()
    inputs, gate = torch.randn(8, 5), torch.arange(8) % 3
    weight, bias = mixture.gate.weight.view(3, 4, 5), mixture.gate.bias.view(3, 4)
    for row in range(8):
        shares = (weight[gate[row]] @ inputs[row] + bias[gate[row]]).softmax(dim=0)
        expected = sum(
            share * expert(inputs[row : row + 1])[0] for share, expert in zip(shares, mixture.experts, strict=True)
        )
        torch.testing.assert_close(mixture(inputs, gate)[row], expected, atol=1e-6, rtol=1e-5)


def test_scenario_gates_need_a_categorical_feature(sessions) -> None:
    with pytest.raises(ConfigError, match=r"required a categorical feature \(region, order\); received orders"):
        sessions.ranker(BaselineConfig(gates="scenario", scenario="orders"))
    with pytest.raises(ValueError, match="go together"):
        BaselineConfig(gates="scenario")


def test_four_experts_and_no_query_tower(sessions) -> None:
    ranker = sessions.ranker(BaselineConfig())
    assert len(ranker.user_tower.experts.experts) == 4
    assert ranker.query_tower is None
    assert ranker.omega == 1
    scores = ranker.eval().score(sessions.batch())
    assert scores.query_part.abs().sum() == 0


def test_history_positions_are_fields(sessions) -> None:
    """Two categoricals, two numbers, and (three positions + one pool) for the sequence and four members."""
    fields = sessions.ranker(BaselineConfig()).user_tower.fields
    assert fields(sessions.batch(4)).shape == (4, 4 + 5 * 4, 16)
    assert fields.num_fields == 24
