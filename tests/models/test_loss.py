"""The listwise loss: hand-computed values, equal gradients of KL and cross-entropy, lists that teach nothing."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rgalign.data.batch import SessionBatch
from rgalign.models import QERecConfig
from rgalign.models.loss import MASKED, ListBuilder, Lists, LossConfig, click_target, listwise_kl

NUM_INTENTS = 6


def clicks(rows: list[list[int]], candidates: list[list[int]] | None = None) -> SessionBatch:
    """A batch of nothing but labels."""
    empty = torch.zeros(len(rows), 0)
    return SessionBatch(
        categorical=empty.long(),
        numerical=empty,
        missing=empty.bool(),
        sequences={},
        groups={},
        group_lengths={},
        candidates=None if candidates is None else torch.tensor(candidates),
        clicked=torch.tensor(rows),
        latent=None,
    )


def builder(**config: object) -> ListBuilder:
    return ListBuilder(LossConfig.model_validate(config), NUM_INTENTS)


def scores(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, NUM_INTENTS, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_targets_by_hand() -> None:
    labels = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0]])
    mask = torch.tensor([[True, True, True, False]] * 2)
    torch.testing.assert_close(click_target(labels, mask, "normalized"), torch.tensor([[0.5, 0, 0.5, 0], [0.0] * 4]))
    e = math.e
    expected = torch.tensor([[e, 1, e, 0], [0, 0, 0, 0]]) / (2 * e + 1)
    torch.testing.assert_close(click_target(labels, mask, "exp"), expected)


def test_exp_targets_are_almost_flat() -> None:
    """recommender.md, finding 3: the click's share with one positive of n."""
    for size, share in ((10, 0.232), (100, 0.0267), (1000, 0.0027)):
        labels = functional.one_hot(torch.tensor([0]), size).float()
        assert click_target(labels, torch.ones(1, size, dtype=torch.bool), "exp")[0, 0] == pytest.approx(
            share, abs=5e-4
        )


def test_divergence_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0]])
    lists = Lists(logits, torch.tensor([[1.0, 0, 0]]), torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3))
    expected = -math.log(math.e**2 / (math.e**2 + 1 + math.e))  # the target is one-hot: its entropy is 0
    assert listwise_kl(lists, "normalized").item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("target", ["normalized", "exp"])
def test_kl_and_cross_entropy_have_one_gradient(target: str) -> None:
    logits = (scores(4) * 3).double().requires_grad_()
    labels = torch.zeros(4, NUM_INTENTS).scatter_(1, torch.tensor([[0, 1], [2, 3], [4, 5], [1, 4]]), 1.0)
    mask = torch.rand(4, NUM_INTENTS, generator=torch.Generator().manual_seed(5)) < 0.7
    mask |= labels > 0
    lists = Lists(logits.masked_fill(~mask, MASKED), labels, mask, torch.zeros_like(logits))
    (kl,) = torch.autograd.grad(listwise_kl(lists, target).sum(), logits)
    wanted = click_target(labels, mask, target).double()
    log_p = logits.masked_fill(~mask, MASKED).log_softmax(-1).masked_fill(~mask, 0)
    (ce,) = torch.autograd.grad(-(wanted * log_p).sum(), logits)
    assert ce.abs().sum() > 0.1
    torch.testing.assert_close(kl, ce, atol=1e-6, rtol=0)


def test_paper_literal_by_hand() -> None:
    """Two samples whose clicks are intents 1 and 4: eq. 6 over the batch index, softmax(y), plain cosines."""
    config = QERecConfig(preset="paper_literal").loss
    lists = ListBuilder(config, NUM_INTENTS)
    table = torch.zeros(2, NUM_INTENTS)
    table[0, [1, 4]] = torch.tensor([0.8, -0.2])  # sample 0: s_1 = 0.8 (its click), s_2 = -0.2
    table[1, [1, 4]] = torch.tensor([0.1, 0.5])
    kl = listwise_kl(lists(table, clicks([[1], [4]])), config.target)
    # P_click = (e, 1) / (e + 1) = (0.731059, 0.268941); P_pred(0) = softmax(0.8, -0.2) is the same: KL = 0.
    assert kl[0].item() == pytest.approx(0.0, abs=1e-6)
    # P_pred(1) = softmax(0.5, 0.1) = (0.598688, 0.401312):
    # 0.731059 ln(0.731059 / 0.598688) + 0.268941 ln(0.268941 / 0.401312) = 0.146032 - 0.107643
    assert kl[1].item() == pytest.approx(0.038389, abs=2e-6)


def test_paper_literal_preset_and_its_overrides() -> None:
    literal = QERecConfig(preset="paper_literal")
    assert (literal.loss.list_axis, literal.loss.target, literal.loss.logit_scale) == ("batch", "exp", "fixed")
    assert literal.user.out_activation == "sigmoid"
    assert ListBuilder(literal.loss, 3).scale().item() == 1.0
    changed = QERecConfig.model_validate({"preset": "paper_literal", "loss": {"target": "normalized"}})
    assert (changed.loss.target, changed.loss.list_axis) == ("normalized", "batch")
    assert QERecConfig.model_validate(literal.model_dump()) == literal
    assert QERecConfig().loss.list_axis == "candidates"


def test_lists_without_a_click_are_left_out(sessions, qe_rec) -> None:
    batch = sessions.batch(8)
    clicked = batch.clicked.clone()
    clicked[4:] = -1
    half = qe_rec.loss(replace(batch, clicked=clicked))
    assert half.num_lists == 4
    expected = qe_rec.loss(batch.select(torch.arange(4)))
    torch.testing.assert_close(half.total, expected.total)
    nothing = qe_rec.loss(replace(batch, clicked=torch.full_like(clicked, -1)))
    assert nothing.total == 0
    nothing.total.backward()
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in qe_rec.parameters())


def test_slates_and_their_padding() -> None:
    table = scores(2)
    lists = builder()(table, clicks([[1], [5]], [[1, 3, -1, -1], [0, 2, 4, 3]]))
    kl = listwise_kl(lists, "normalized")
    expected = -torch.log_softmax(table[0, [1, 3]] / 0.07, -1)[0]
    torch.testing.assert_close(kl[0], expected)
    assert kl[1] == 0  # its click is not on its slate
    assert lists.has_click.tolist() == [True, False]


def test_a_slate_of_everything_is_the_whole_catalogue() -> None:
    table = scores(3)
    everything = [list(range(NUM_INTENTS))] * 3
    rows = [[1, 2], [5, -1], [0, -1]]
    slate = listwise_kl(builder()(table, clicks(rows, everything)), "normalized")
    torch.testing.assert_close(listwise_kl(builder()(table, clicks(rows)), "normalized"), slate)
    assert (slate > 0).all()


def test_a_slate_of_padding_has_a_finite_gradient() -> None:
    table = scores(1).requires_grad_()
    listwise_kl(builder()(table, clicks([[2]], [[-1, -1]])), "normalized").sum().backward()
    assert table.grad.abs().sum() == 0


def test_unseen_intents_do_not_compete_unless_clicked() -> None:
    lists = builder()
    lists.clicks.copy_(torch.tensor([3.0, 0, 2, 1, 0, 1]))
    built = lists(scores(2), clicks([[0], [1]]))
    assert built.mask.tolist() == [[True, False, True, True, False, True], [True, True, True, True, False, True]]
    unmasked = builder(mask_unseen=False)
    unmasked.clicks.zero_()
    assert unmasked(scores(1), clicks([[0]])).mask.all()


def test_sampled_negatives_estimate_the_whole_partition_sum() -> None:
    """Unbiased with the correction; without it the draws count as often as they were drawn."""
    table, batch, count = scores(1), clicks([[2]]), 20_000
    whole = builder(mask_unseen=False, logit_scale_init=2.0)(table, batch).logits.exp().sum().item()
    for proposal in ("popularity", "uniform"):
        lists = builder(sampled_negatives=count, proposal=proposal, logit_scale_init=2.0)
        lists.clicks.copy_(torch.tensor([50.0, 20, 10, 10, 5, 5]))
        torch.manual_seed(0)
        assert lists(table, batch).logits.exp().sum().item() == pytest.approx(whole, rel=0.03)
    uncorrected = builder(sampled_negatives=count, logq_correction=False, logit_scale_init=2.0)
    assert uncorrected(table, batch).logits.exp().sum().item() > 100 * whole


def test_sampled_negatives_never_repeat_the_slate() -> None:
    lists = builder(sampled_negatives=64)(scores(2), clicks([[1], [3]], [[1, 2], [3, -1]]))
    assert lists.labels.sum(dim=-1).tolist() == [1, 1]
    assert (lists.mask[:, 2:].sum(dim=-1) > 0).all()


def test_batch_lists_correct_for_popularity() -> None:
    plain, corrected = (builder(list_axis="batch", logq_correction=flag) for flag in (False, True))
    for lists in (plain, corrected):
        lists.clicks.copy_(torch.tensor([1.0, 8, 1, 0, 0, 0]))
    table, batch = scores(2), clicks([[1, -1], [0, 2]])
    difference = corrected(table, batch).logits - plain(table, batch).logits
    torch.testing.assert_close(difference[0], -torch.tensor([0.8, 0.1, 0.1]).log())
    assert plain(table, batch).labels.tolist() == [[1, 0, 0], [0, 1, 1]]


def test_logit_scale_is_clamped_and_learned() -> None:
    lists = builder()
    assert lists.scale().item() == pytest.approx(1 / 0.07)
    listwise_kl(lists(scores(2), clicks([[0], [1]])), "normalized").sum().backward()
    assert lists.log_scale.grad.abs() > 0
    with torch.no_grad():
        lists.log_scale.fill_(20.0)
    assert lists.scale().item() == pytest.approx(100.0)
