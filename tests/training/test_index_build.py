"""From a training run to an index, intents by text alone, and the serving path under `recommend` and `evaluate`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from rgalign.cli import app
from rgalign.data.dataset import Dataset
from rgalign.errors import ConfigError, DataError, ProvenanceError
from rgalign.index import read_index, write_index
from rgalign.intents import IntentCatalog
from rgalign.metrics.ranking import session_metrics
from rgalign.models import Ranker
from rgalign.scoring import score
from rgalign.training import index_build
from rgalign.training.fused_scores import fused_scores, rank_sessions
from rgalign.training.index_build import add_by_text, cold_vectors, index_of, index_provenance
from rgalign.training.latents import LatentStore
from rgalign.training.ranker_files import LoadedRanker, load_ranker
from rgalign.training.ranker_scores import score_split
from rgalign.training.semantic import write_semantic
from rgalign.training.stage1 import Stage1Config, train_stage1

SEMANTIC_DIM = 5


@pytest.fixture(scope="module")
def semantic_dir(small_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("semantic")
    matrix = torch.randn(len(small_dataset.catalog), SEMANTIC_DIM, generator=torch.Generator().manual_seed(0))
    write_semantic(path, matrix, small_dataset.catalog, {"model": "tiny"})
    return path


@pytest.fixture(scope="module")
def run(
    stage1_values: Callable[..., dict[str, Any]], semantic_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    values = stage1_values(semantic=str(semantic_dir), epochs=1)
    train_stage1(Stage1Config.model_validate(values), path)
    return path


@pytest.fixture
def loaded(run: Path) -> LoadedRanker:
    return load_ranker(run)


def test_an_index_is_the_intent_towers_vectors(loaded: LoadedRanker, tmp_path: Path) -> None:
    index = index_of(loaded)
    assert torch.equal(index.decoded, loaded.ranker.intents())
    assert index.ids == loaded.catalog.ids
    assert index.titles == loaded.catalog.titles
    assert read_index(write_index(index, tmp_path / "index"), require=index_provenance(loaded)).vectors.equal(
        index.vectors
    )


def test_another_tower_has_another_hash(loaded: LoadedRanker) -> None:
    before = index_provenance(loaded)["intent_tower"]
    with torch.no_grad():
        next(loaded.ranker.intent_tower.parameters()).add_(1e-6)
    assert index_provenance(loaded)["intent_tower"] != before


def test_an_intent_without_clicks_is_already_on_the_cold_path(loaded: LoadedRanker) -> None:
    tower = loaded.ranker.intent_tower
    fields: Any = tower.fields
    fields.seen[2] = False
    cold = cold_vectors(tower, fields.semantic)
    assert (cold[2] - loaded.ranker.intents()[2]).abs().max() < 1e-6
    assert (cold[1] - loaded.ranker.intents()[1]).abs().max() > 1e-3
    assert fields.seen[1], "the tower itself is as it was"


def further_catalog() -> IntentCatalog:
    return IntentCatalog(("i05", "new"), ("Refund of a gift card", "Change my address"), ("", ""))


def test_intents_are_added_by_text(
    run: Path, loaded: LoadedRanker, semantic_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The text encoder is a language model, tested in test_hllm.py; here it is a fixed vector a text.
    fields: Any = loaded.ranker.intent_tower.fields
    known = fields.semantic[3]
    monkeypatch.setattr(index_build, "encode_catalog", lambda directory, catalog: torch.stack([known, -known]))
    index = index_of(loaded)
    added = add_by_text(index, run, further_catalog())
    assert added.ids == ("i0", "i05", *loaded.catalog.ids[1:], "new")
    vectors = cold_vectors(loaded.ranker.intent_tower, torch.stack([known, -known]))
    answer = score(None, vectors, None, added, 1.0, 1)
    assert answer.ids == [["i05"], ["new"]]
    assert added.provenance["intent_tower"] == index.provenance["intent_tower"]
    with pytest.raises(DataError, match="not in the index; received 'i05'"):
        add_by_text(added, run, further_catalog())
    other = write_index(index, tmp_path / "other")
    index.provenance["intent_tower"] = "0" * 64
    with pytest.raises(ProvenanceError, match="intent_tower"):
        add_by_text(index, run, further_catalog())
    assert len(read_index(other)) == len(loaded.catalog)


def test_intents_by_text_need_text_vectors(
    run: Path, stage1_values: Callable[..., dict[str, Any]], small_dataset: Dataset, semantic_dir: Path, tmp_path: Path
) -> None:
    train_stage1(Stage1Config.model_validate(stage1_values(epochs=1)), tmp_path / "ids")
    by_id = load_ranker(tmp_path / "ids")
    with pytest.raises(ConfigError, match="required a ranker trained with text vectors"):
        add_by_text(index_of(by_id), tmp_path / "ids", further_catalog())
    index = index_of(load_ranker(run))
    matrix = torch.zeros(len(small_dataset.catalog), SEMANTIC_DIM)
    saved = {file: file.read_bytes() for file in semantic_dir.iterdir()}
    write_semantic(semantic_dir, matrix, small_dataset.catalog, {"model": "another"})
    with pytest.raises(ProvenanceError, match="required text vectors"):
        add_by_text(index, run, further_catalog())
    for file, data in saved.items():
        file.write_bytes(data)


def former_scores(ranker: Ranker, loaded: LoadedRanker, dataset: Dataset, latents: LatentStore | None) -> torch.Tensor:
    """What evaluation ranked by before it shared the serving path: the sum of the two parts."""
    table = dataset.table("test")
    states = None if latents is None else latents.take(latents.rows(dataset, "test"))
    return ranker.score(loaded.encoder.encode(table, states)).total.detach()


@pytest.mark.parametrize("with_latents", [True, False])
def test_the_metrics_are_those_of_before(
    loaded: LoadedRanker, small_dataset: Dataset, small_latents: LatentStore, with_latents: bool
) -> None:
    store = small_latents if with_latents else None
    scores = score_split(loaded, small_dataset, "test", store)
    former = former_scores(loaded.ranker, loaded, small_dataset, store)
    assert np.abs(scores.total - former.numpy()).max() < 1e-6
    if scores.user_part is not None and scores.query_part is not None:
        assert np.abs(scores.total - scores.user_part - scores.query_part).max() < 1e-6
    now = session_metrics(scores.total, scores.clicked, scores.candidates)
    before = session_metrics(former, scores.clicked, scores.candidates)
    assert len(now.values) > 5
    for name in now.values:
        assert 0 < before.mean(name) <= 1
        assert abs(now.mean(name) - before.mean(name)) < 1e-6, name


def test_recommending_ranks_as_evaluation_does(
    loaded: LoadedRanker, small_dataset: Dataset, small_latents: LatentStore
) -> None:
    table = small_dataset.table("test")
    states = small_latents.take(small_latents.rows(small_dataset, "test"))
    batch = loaded.encoder.encode(table, states)
    index = index_of(loaded)
    ranked = rank_sessions(loaded.ranker, index, batch, 3)
    scores = fused_scores(loaded.ranker, batch, index.decoded)
    assert torch.equal(ranked.rows, scores.total.sort(dim=1, descending=True, stable=True).indices[:, :3])
    for ours, matrix in ((ranked.scores, scores.total), (ranked.user_part, scores.user_part)):
        assert (ours - matrix.gather(1, ranked.rows)).abs().max() < 1e-6
    late = loaded.encoder.encode(table, None)
    assert rank_sessions(loaded.ranker, index, late, 3).query_part.abs().max() == 0


def test_the_command_line(run: Path, tmp_path: Path) -> None:
    def call(*arguments: object) -> Any:
        return CliRunner().invoke(app, ["index", *map(str, arguments)])

    index, small = tmp_path / "index", tmp_path / "int8"
    assert call("build", run, "-o", index).exit_code == 0
    assert call("build", run, "-o", small, "--precision", "int8").exit_code == 0
    answer = call("verify", index, "--run", run)
    assert answer.exit_code == 0
    assert "intents: 7" in answer.output
    assert call("diff", index, index).exit_code == 0
    changed = call("diff", index, small, "--same", "1.0")
    assert changed.exit_code == 1
    assert "> i" in changed.output
    data = bytearray(next(index.glob("*.safetensors")).read_bytes())
    data[-1] ^= 1
    next(index.glob("*.safetensors")).write_bytes(data)
    assert isinstance(call("verify", index).exception, DataError)
