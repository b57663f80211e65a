"""What holds for every ranker: finite on any history, blind to padding, one fused vector, weights that travel."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from rgalign.data.batch import SessionBatch
from rgalign.errors import ProvenanceError
from rgalign.models import QERecConfig, Ranker, load_weights, save_weights
from rgalign.models.loss import listwise_kl
from rgalign.models.query_tower import QueryTower

HISTORIES = {"all empty": [0] * 6, "length one": [1] * 6, "longest": [5] * 6, "mixed": [0, 1, 2, 5, 0, 3]}


def padded(batch: SessionBatch, extra: int, fill: int = 0) -> SessionBatch:
    """The same sessions with ``extra`` more padding behind every group; ``fill`` is what the padding holds."""
    wider = {
        name: {member: functional.pad(values, (0, extra), value=fill) for member, values in members.items()}
        for name, members in batch.groups.items()
    }
    sequences = {name: functional.pad(codes, (0, extra)) for name, codes in batch.sequences.items()}
    return replace(batch, groups=wider, sequences=sequences)


@pytest.mark.parametrize("lengths", HISTORIES.values(), ids=HISTORIES.keys())
def test_finite_on_any_history(any_ranker: Ranker, sessions, lengths: list[int]) -> None:
    batch = sessions.batch(6, lengths=lengths)
    loss = any_ranker.loss(batch).total
    loss.backward()
    gradients = {name: p.grad for name, p in any_ranker.named_parameters() if p.requires_grad}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    assert loss.isfinite()
    assert any_ranker.eval().score(batch).total.isfinite().all()


def test_missing_everything_is_defined(any_ranker: Ranker, sessions) -> None:
    table = sessions.table(3, lengths=[0, 0, 0]).select([*sessions.schema.columns])
    empty = table.schema.empty_table()
    nothing = empty.from_pylist([dict.fromkeys(table.column_names)] * 2, schema=table.schema)
    scores = any_ranker.eval().score(sessions.encoder.encode(nothing)).total
    assert scores.isfinite().all()
    torch.testing.assert_close(scores[0], scores[1])


def test_padding_does_not_count(any_ranker: Ranker, sessions) -> None:
    batch = sessions.batch(8, lengths=[0, 1, 2, 3, 3, 2, 1, 0])
    expected = any_ranker.eval().user(batch)
    assert expected.abs().sum() > 0
    torch.testing.assert_close(any_ranker.user(padded(batch, 2)), expected, atol=1e-6, rtol=0)
    # Whatever stands in a group's padding is not read.
    torch.testing.assert_close(any_ranker.user(padded(batch, 2, fill=1)), expected, atol=1e-6, rtol=0)


def test_alone_or_in_a_batch(any_ranker: Ranker, sessions) -> None:
    batch = sessions.batch(8)
    together = any_ranker.eval().score(batch).total
    alone = torch.cat([any_ranker.score(batch.select(torch.tensor([row]))).total for row in range(8)])
    torch.testing.assert_close(alone, together, atol=1e-6, rtol=0)


def reordered(batch: SessionBatch, order: list[int]) -> SessionBatch:
    groups = {name: {member: v[:, order] for member, v in members.items()} for name, members in batch.groups.items()}
    return replace(batch, groups=groups)


def test_the_order_of_steps_counts_and_that_of_padding_does_not(any_ranker: Ranker, sessions) -> None:
    batch = padded(sessions.batch(8, lengths=[3] * 8), 2)
    expected = any_ranker.eval().user(batch)
    swapped = any_ranker.user(reordered(batch, [2, 1, 0, 3, 4]))
    assert ((swapped - expected).abs().amax(dim=-1) > 1e-5).all()
    marked = batch.groups["past"]["past_intents"].clone()
    marked[:, 3] = 2
    marked = replace(batch, groups={"past": {**batch.groups["past"], "past_intents": marked}})
    torch.testing.assert_close(any_ranker.user(reordered(marked, [0, 1, 2, 4, 3])), expected, atol=1e-6, rtol=0)


def test_parts_sum_to_the_score(any_ranker: Ranker, sessions) -> None:
    scores = any_ranker.eval().score(sessions.batch())
    assert torch.equal(scores.total, scores.user_part + scores.query_part)
    assert scores.total.abs().max() <= 1 + 1e-6


def test_score_is_eq_4(qe_rec: Ranker, sessions) -> None:
    batch = sessions.batch()
    scores = qe_rec.score(batch)
    user, query, intents = qe_rec.user(batch), qe_rec.query(batch.latent), qe_rec.intents()
    for vectors in (user, query, intents):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(vectors)))
    torch.testing.assert_close(scores.user_part, 0.7 * user @ intents.T)
    torch.testing.assert_close(scores.query_part, 0.3 * query @ intents.T, atol=1e-6, rtol=1e-5)


def test_fused_top_k_is_the_top_k_of_two_similarities(sessions) -> None:
    for omega in (0.1, 0.5, 0.7, 0.95):
        ranker = sessions.ranker(QERecConfig(dim=16, omega=omega)).double().eval()
        ranker.fixed_omega.fill_(omega)
        batch = sessions.batch(32)
        user, query, intents = ranker.user(batch).double(), ranker.query(batch.latent.double()), ranker.intents()
        two = omega * user @ intents.T.double() + (1 - omega) * query.double() @ intents.T.double()
        one = ranker.fuse(user, query.double()) @ intents.T.double()
        torch.testing.assert_close(one, two)
        assert torch.equal(one.topk(3).indices, two.topk(3).indices)


def test_without_latents_omega_is_one(qe_rec: Ranker, sessions) -> None:
    batch = sessions.batch()
    scores = qe_rec.score(batch.without_latent())
    torch.testing.assert_close(scores.total, qe_rec.user(batch) @ qe_rec.intents().T)
    assert scores.query_part.abs().sum() == 0


def test_a_zero_latent_contributes_nothing(qe_rec: Ranker, sessions) -> None:
    batch = sessions.batch(4)
    latent = batch.latent.clone()
    latent[1] = 0
    latent.requires_grad_()
    scores = qe_rec.score(replace(batch, latent=latent))
    assert scores.query_part[1].abs().sum() == 0
    assert scores.query_part[0].abs().sum() > 0
    scores.total.sum().backward()
    assert latent.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in qe_rec.parameters() if p.grad is not None)


def test_part_weight_trains_each_part_alone(sessions) -> None:
    plain = QERecConfig(dim=16, dropout=0.0, query_dropout=0.0)
    weighted = plain.model_copy(update={"loss": plain.loss.model_copy(update={"part_weight": 0.5})})
    batch = sessions.batch(16)
    ranker = sessions.ranker(weighted).eval()
    scores = ranker.score(batch)

    def divergence(part: torch.Tensor) -> torch.Tensor:
        return listwise_kl(ranker.lists(part, batch), "normalized").mean()

    loss = ranker.loss(batch)
    alone = divergence(scores.user_part / 0.7) + divergence(scores.query_part / 0.3)
    torch.testing.assert_close(loss.rank, divergence(scores.total))
    torch.testing.assert_close(loss.total, divergence(scores.total) + 0.5 * alone)
    without = batch.without_latent()
    torch.testing.assert_close(ranker.loss(without).total, ranker.loss(without).rank)


def test_absent_latents_are_drawn_in_training_only() -> None:
    torch.manual_seed(0)
    tower = QueryTower(8, 4, "none", dropout=0.0, absence=0.3)
    latents = torch.randn(2000, 8)
    absent = (tower(latents) == 0).all(dim=1)
    assert 0.25 < absent.float().mean() < 0.35
    assert not (tower.eval()(latents) == 0).all(dim=1).any()


@pytest.mark.parametrize("input_norm", ["none", "layernorm", "standardize"])
def test_query_input_norms(sessions, input_norm: str) -> None:
    ranker = sessions.ranker(QERecConfig(dim=8, input_norm=input_norm)).eval()
    latents = sessions.batch(64).latent * torch.linspace(0.1, 50, 12) + 7
    ranker.set_statistics(torch.ones(7), latents)
    query = ranker.query(latents)
    torch.testing.assert_close(query.norm(dim=-1), torch.ones(64))
    if input_norm != "layernorm":
        weight, bias = ranker.query_tower.folded()
        folded = functional.normalize(latents @ weight.T + bias, dim=-1)
        torch.testing.assert_close(folded, query, atol=1e-5, rtol=0)


def test_bf16_autocast(any_ranker: Ranker, sessions) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        loss = any_ranker.loss(sessions.batch(8, lengths=[0, 1, 2, 3, 4, 5, 0, 1])).total
    loss.backward()
    assert loss.isfinite()
    assert loss.dtype == torch.float32


def test_weights_travel(any_config, any_ranker: Ranker, sessions, tmp_path: Path) -> None:
    any_ranker.set_statistics(torch.tensor([5.0, 0, 1, 2, 3, 4, 5]), torch.randn(20, 12))
    save_weights(any_ranker, tmp_path / "ranker.safetensors")
    loaded = load_weights(tmp_path / "ranker.safetensors", any_config, sessions.schema, sessions.catalog)
    batch = sessions.batch()
    assert torch.equal(loaded.score(batch).total, any_ranker.eval().score(batch).total)
    assert not loaded.training


def test_weights_of_another_configuration_are_refused(qe_rec: Ranker, sessions, tmp_path: Path) -> None:
    save_weights(qe_rec, tmp_path / "ranker.safetensors")
    with pytest.raises(ProvenanceError, match="other tensors"):
        load_weights(tmp_path / "ranker.safetensors", QERecConfig(dim=16), sessions.schema, sessions.catalog)
    (tmp_path / "broken.safetensors").write_bytes(b"\x80\x04")
    with pytest.raises(ProvenanceError, match="required the weights"):
        load_weights(tmp_path / "broken.safetensors", QERecConfig(), sessions.schema, sessions.catalog)


def test_a_step_lowers_the_loss(any_ranker: Ranker, sessions) -> None:
    batch = sessions.batch(64)
    any_ranker.eval()
    optimizer = torch.optim.AdamW(any_ranker.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = any_ranker.loss(batch).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert np.isfinite(losses).all()
