"""The intent tower: unit rows, id-dropout, intents served by their text alone."""

import pytest
import torch

from rgalign.models import QERecConfig
from rgalign.models.intent_tower import IntentTower, IntentTowerConfig
from rgalign.models.layers import CrossNetwork
from rgalign.schema import OOV


def tower(semantic: torch.Tensor | None, **config: float) -> IntentTower:
    torch.manual_seed(0)
    return IntentTower(IntentTowerConfig(id_dim=6, semantic_dim=4, **config), 5, semantic, 8, dropout=0.0)


TEXTS = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("semantic", [None, TEXTS], ids=["ids", "ids and text"])
def test_rows_are_unit_vectors(semantic: torch.Tensor | None) -> None:
    torch.testing.assert_close(tower(semantic).eval()().norm(dim=-1), torch.ones(5))


def test_an_unseen_intent_is_its_text(sessions) -> None:
    intents = tower(TEXTS).eval()
    before = intents()
    intents.fields.seen[2:4] = False
    after = intents()
    assert torch.equal(after[[0, 1, 4]], before[[0, 1, 4]])
    # The id row no longer counts, the text does: two unseen intents are told apart.
    with torch.no_grad():
        intents.fields.table.weight[2 + 2] += 100
    assert torch.equal(intents(), after)
    assert (after[2] - after[3]).abs().max() > 1e-3
    assert (after[2:4] - before[2:4]).abs().max() > 1e-4


def test_removing_an_id_degrades_gracefully(qe_rec, sessions) -> None:
    batch = sessions.batch()
    optimizer = torch.optim.AdamW(qe_rec.train().parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        qe_rec.loss(batch).total.backward()
        optimizer.step()
    known = qe_rec.eval().score(batch).total
    qe_rec.set_statistics(torch.tensor([1.0, 1, 1, 0, 1, 1, 1]))
    unknown = qe_rec.score(batch).total
    assert torch.equal(unknown[:, [0, 1, 2, 4, 5, 6]], known[:, [0, 1, 2, 4, 5, 6]])
    assert unknown[:, 3].isfinite().all()
    assert unknown[:, 3].std() > 1e-3  # not a constant


def test_without_text_unseen_intents_are_alike() -> None:
    intents = tower(None).eval()
    intents.fields.seen[2:] = False
    torch.testing.assert_close(intents()[2:], intents()[2:3].expand(3, -1))


def test_id_dropout_reads_the_unknown_row_in_training_only() -> None:
    fields = tower(TEXTS, id_dropout=0.5).fields
    unknown = fields.table.weight[OOV]
    torch.manual_seed(0)
    dropped = sum(int((fields.train().ids() == unknown).all(dim=-1).sum()) for _ in range(200))
    assert 400 < dropped < 600  # of 1000
    assert not (fields.eval().ids() == unknown).all(dim=-1).any()


def test_texts_are_centred_and_a_constant_column_is_harmless() -> None:
    texts = torch.cat((TEXTS * 100 + 1000, torch.full((5, 1), 7.0)), dim=1)
    standardised = tower(texts).fields.texts()
    torch.testing.assert_close(standardised.mean(dim=0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(standardised[:, :3].std(dim=0, correction=0), torch.ones(3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("rank", [None, 2])
def test_cross_is_its_definition(rank: int | None) -> None:
    cross = CrossNetwork(4, 2, rank)
    x0 = torch.randn(3, 4)
    expected = x0
    for layer in cross.layers:
        if rank is None:
            product = expected @ layer.weight.T + layer.bias
        else:
            product = expected @ (layer[1].weight @ layer[0].weight).T + layer[1].bias
        expected = x0 * product + expected
    torch.testing.assert_close(cross(x0), expected)


def test_tied_histories_read_the_id_table(sessions) -> None:
    user = {"tie_intents": True, "history_dim": 32}
    ranker = sessions.ranker(QERecConfig.model_validate({"dim": 8, "user": user})).eval()
    batch = sessions.batch(4, lengths=[2, 2, 2, 2])
    before = ranker.user(batch)
    with torch.no_grad():
        ranker.intent_tower.fields.table.weight.mul_(5)
    assert (ranker.user(batch) - before).abs().max() > 1e-4
    with pytest.raises(ValueError, match="tie_intents needs"):
        QERecConfig.model_validate({"user": {"tie_intents": True, "history_dim": 16}})
