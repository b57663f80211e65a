"""Stage 1 as a whole: it learns, keeps the best epoch, records what it did, refuses what does not belong together."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rgalign.config import parse_config
from rgalign.data.dataset import Dataset
from rgalign.errors import ConfigError, DataError, ProvenanceError
from rgalign.metrics.ranking import session_metrics
from rgalign.training.latents import LatentStore
from rgalign.training.semantic import write_semantic
from rgalign.training.stage1 import Stage1Config, load_ranker, score_split, train_stage1

Values = Callable[..., dict[str, Any]]


def config_of(values: dict[str, Any]) -> Stage1Config:
    return parse_config(Stage1Config, values, where="test")


@pytest.fixture(scope="module")
def run(stage1_values: Values, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    train_stage1(config_of(stage1_values(epochs=8)), path)
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "history.jsonl").read_text().splitlines()]


def test_the_ranker_learns_and_the_best_epoch_is_kept(run: Path, small_dataset: Dataset, small_latents: LatentStore):
    history, metrics = lines(run), json.loads((run / "metrics.json").read_text())
    assert (run / "done").is_file()
    assert [record["epoch"] for record in history] == list(range(1, metrics["epochs"] + 1))
    assert history[-1]["train_loss"] < 0.9 * history[0]["train_loss"]  # of it, the confidence predictor's falls little
    values = [record["valid"]["ndcg@3"] for record in history]
    assert metrics["best_epoch"] == 1 + int(np.argmax(values))
    assert max(values) > values[0] > 0.2  # ... and more than an order by chance: about 0.3 of 7 intents
    assert metrics["sessions_per_s"] > 0
    assert metrics["steps"] == history[-1]["steps"]
    # What is on disk is what was measured.
    scores = score_split(load_ranker(run), small_dataset, "valid", small_latents, batch_size=17)
    found = session_metrics(scores.total, scores.clicked, scores.candidates)
    for name, value in metrics["valid"].items():
        assert found.mean(name) == pytest.approx(value, abs=1e-6)


def test_scores_are_of_every_session_in_order_and_their_parts_add_up(
    run: Path, small_dataset: Dataset, small_latents: LatentStore
):
    loaded = load_ranker(run)
    scores = score_split(loaded, small_dataset, "test", small_latents, batch_size=13)
    assert scores.user_part is not None
    assert scores.query_part is not None
    assert np.abs(scores.query_part).sum() > 0
    np.testing.assert_allclose(scores.user_part + scores.query_part, scores.total, atol=1e-6)
    assert list(scores.session_ids) == small_dataset.table("test").column("session_id").to_pylist()
    assert scores.candidates is not None
    listed = small_dataset.table("test", ["candidates", "clicked"]).to_pylist()
    for row, session in enumerate(listed):
        candidates = [small_dataset.catalog.ids[n] for n in scores.candidates[row] if n >= 0]
        assert candidates == (session["candidates"] or list(small_dataset.catalog.ids))
        assert [small_dataset.catalog.ids[n] for n in scores.clicked[row] if n >= 0] == session["clicked"]
    # Without latent queries: ω = 1 on the same intents.
    late = score_split(loaded, small_dataset, "test", None)
    np.testing.assert_allclose(late.total * loaded.ranker.omega.item(), scores.user_part, atol=1e-6)
    assert late.provenance["latents"] == "none"


def test_a_finished_run_is_skipped(run: Path, stage1_values: Values):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}

    def fail(step: int) -> None:
        raise AssertionError("trained again")

    # What does not change the outcome does not make it another run.
    config = config_of(stage1_values(epochs=8, memory_rows=0, checkpoint_steps=50))
    assert train_stage1(config, run, on_step=fail) == json.loads((run / "metrics.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("finished", [True, False])
def test_a_changed_input_is_refused_or_begun_afresh(
    finished: bool, stage1_values: Values, make_dataset: Callable[..., Dataset], tmp_path: Path
):
    class Stop(Exception):
        pass

    def stop(step: int) -> None:
        if not finished and step == 3:
            raise Stop

    def config(**changes: Any) -> Stage1Config:
        return config_of(stage1_values(**{"epochs": 1, "checkpoint_steps": 2, "latents": None, **changes}))

    path = tmp_path / "run"
    try:
        train_stage1(config(), path, on_step=stop)
    except Stop:
        assert not finished
    with pytest.raises(ProvenanceError, match=r"config\.optimiser\.learning_rate 0\.01, as when the run began.*0\.002"):
        train_stage1(config(optimiser={"learning_rate": 0.002}), path)
    other = make_dataset(tmp_path / "other", seed=5)
    with pytest.raises(ProvenanceError, match="required train "):
        train_stage1(config(dataset=str(other.path)), path)
    assert (path / "done").is_file() == finished
    train_stage1(config(dataset=str(other.path)), path, restart=True)
    assert json.loads((path / "inputs.json").read_text())["train"] == other.fingerprint("train")
    assert load_ranker(path).provenance["train"] == other.fingerprint("train")


def test_a_directory_that_is_no_run_is_left_alone(stage1_values: Values, tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("five years")
    for restart in (False, True):
        with pytest.raises(ProvenanceError, match=r"a directory without inputs\.json"):
            train_stage1(config_of(stage1_values(epochs=1)), tmp_path, restart=restart)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_latent_queries_of_another_origin_are_refused(
    run: Path,
    stage1_values: Values,
    small_dataset: Dataset,
    make_latents: Callable[..., LatentStore],
    latent_provenance: dict[str, Any],
    tmp_path: Path,
):
    for key, value in (("template", "prefix_cached"), ("model", "another")):
        store = make_latents(tmp_path / key, small_dataset, {**latent_provenance, key: value})
        with pytest.raises(ProvenanceError, match=f"required {key} .*received {key} '{value}'"):
            score_split(load_ranker(run), small_dataset, "valid", store)
        with pytest.raises(ProvenanceError, match=f"latents.{key}"):
            train_stage1(config_of(stage1_values(epochs=8, latents=str(store.path))), run)


def test_sessions_of_another_schema_or_catalogue_are_refused(run: Path, small_dataset: Dataset, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(small_dataset.path, copy)
    (copy / "schema.yaml").write_text((copy / "schema.yaml").read_text().replace("max_length: 5", "max_length: 6"))
    with pytest.raises(ProvenanceError, match="the schema that the ranker was trained on"):
        score_split(load_ranker(run), Dataset.open(copy), "valid")


def test_a_damaged_model_is_refused(run: Path, tmp_path: Path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    weights = copy / "model" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(ProvenanceError, match="weights_sha256"):
        load_ranker(copy)
    with pytest.raises(ProvenanceError, match=r"no model/ranker\.json"):
        load_ranker(tmp_path)


def test_training_reads_neither_test_nor_truth(stage1_values: Values, small_dataset: Dataset, tmp_path: Path):
    copy = tmp_path / "dataset"
    shutil.copytree(small_dataset.path, copy)
    shutil.rmtree(copy / "test")
    train_stage1(config_of(stage1_values(dataset=str(copy), latents=None, epochs=1)), tmp_path / "run")
    assert (tmp_path / "run" / "done").is_file()


def test_it_stops_early_and_the_plateau_lowers_the_rate(stage1_values: Values, tmp_path: Path):
    optimiser = {"learning_rate": 1e-12, "lr_patience": 2}  # so small a rate that no epoch improves on the first
    metrics = train_stage1(config_of(stage1_values(epochs=20, patience=5, optimiser=optimiser)), tmp_path / "run")
    rates = [record["lr"] for record in lines(tmp_path / "run")]
    assert metrics["best_epoch"] == 1
    np.testing.assert_allclose(rates, np.array([1, 1, 1, 0.1, 0.1, 0.01]) * 1e-12)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_split_without_sessions_is_an_error(
    split: str, stage1_values: Values, make_dataset: Callable[..., Dataset], tmp_path: Path
):
    dataset = make_dataset(tmp_path / "dataset")
    shutil.rmtree(dataset.path / split)
    with pytest.raises(DataError, match=f"{split}: required at least one session"):
        train_stage1(config_of(stage1_values(dataset=str(dataset.path), latents=None)), tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_training_before_it_is_saved(
    stage1_values: Values, small_dataset: Dataset, latent_provenance: dict[str, Any], tmp_path: Path
):
    store = LatentStore.create(tmp_path / "store", latent_provenance)
    store.append([b"0" * 16], np.full((1, store.dim), np.nan, np.float32))
    for name in ("train", "valid"):
        store.write_map(small_dataset, name, np.zeros(small_dataset.num_rows(name), np.int64))
    with pytest.raises(DataError, match="by step 4: required a finite loss; received nan"):
        train_stage1(config_of(stage1_values(latents=str(store.path))), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_confidence_of_the_training_clicks_is_written(run: Path, small_dataset: Dataset):
    table = pq.read_table(run / "confidence.parquet")
    assert table.column("session_id") == small_dataset.table("train").column("session_id")
    weights = table.column("weight").to_numpy()
    assert weights.std() > 1e-3
    assert weights.min() >= 0.1
    assert weights.max() <= 10
    assert weights.mean() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("variant", ["original", "fuxictr"])
def test_the_baseline_trains_alike(variant: str, stage1_values: Values, small_dataset: Dataset, tmp_path: Path):
    model = {"model": "baseline", "variant": variant, "dim": 8, "embedding_dim": 4, "num_layers": 1, "head_dim": 4}
    model["expert_hidden"] = [8]
    metrics = train_stage1(config_of(stage1_values(model=model, latents=None, epochs=4)), tmp_path / "run")
    history = lines(tmp_path / "run")
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert metrics["omega"] == 1
    assert not (tmp_path / "run" / "confidence.parquet").exists()
    scores = score_split(load_ranker(tmp_path / "run"), small_dataset, "test")
    np.testing.assert_array_equal(scores.query_part, 0)


def test_the_baseline_takes_no_latent_queries(stage1_values: Values):
    with pytest.raises(ConfigError, match="the baseline reads no latent queries"):
        config_of(stage1_values(model={"model": "baseline"}))


def test_text_vectors_are_part_of_the_model(stage1_values: Values, small_dataset: Dataset, tmp_path: Path):
    matrix = torch.randn(len(small_dataset.catalog), 5, generator=torch.Generator().manual_seed(0))
    write_semantic(tmp_path / "semantic", matrix, small_dataset.catalog, {"encoder": "random"})
    config = config_of(stage1_values(semantic=str(tmp_path / "semantic"), latents=None, epochs=1))
    train_stage1(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "semantic")
    state = load_ranker(tmp_path / "run").ranker.state_dict()
    torch.testing.assert_close(state["intent_tower.fields.semantic"], matrix)


def test_bf16_follows_fp32(stage1_values: Values, tmp_path: Path):
    model = {**stage1_values()["model"], "dropout": 0.0, "query_dropout": 0.0}
    losses = {}
    for precision in ("fp32", "bf16"):
        train_stage1(config_of(stage1_values(model=model, precision=precision, epochs=2)), tmp_path / precision)
        losses[precision] = [record["train_loss"] for record in lines(tmp_path / precision)]
    assert losses["bf16"] != losses["fp32"]
    np.testing.assert_allclose(losses["bf16"], losses["fp32"], rtol=0.02)


def test_threads_are_as_before_afterwards(stage1_values: Values, tmp_path: Path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    inside = []
    try:
        config = config_of(stage1_values(num_threads=1, epochs=1))
        train_stage1(config, tmp_path / "run", on_step=lambda step: inside.append(torch.get_num_threads()))
        assert set(inside) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_unknown_key_names_the_nearest(stage1_values: Values):
    with pytest.raises(ConfigError, match="did you mean 'batch_size'"):
        config_of(stage1_values(batchsize=3))
