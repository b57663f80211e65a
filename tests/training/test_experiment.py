"""From a dataset to a report by one configuration, controls in the reasoner's place, one session answered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from typer.testing import CliRunner

from rgalign.cli import app
from rgalign.config import dump_config
from rgalign.data.dataset import Dataset
from rgalign.errors import ConfigError, DataError, ProvenanceError
from rgalign.training import controls
from rgalign.training.experiment import ExperimentConfig, run_directory, run_experiment, score_run
from rgalign.training.latents import LatentStore
from rgalign.training.recommend import SessionRecommender, find_session

SMALL_BASELINE = {"model": "baseline", "dim": 8, "embedding_dim": 4, "head_dim": 4, "expert_hidden": [8]}


@pytest.fixture(scope="module")
def experiment(
    small_dataset: Dataset, stage1_values: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[ExperimentConfig, Path, dict[str, Any]]:
    values = stage1_values(epochs=1)
    config = ExperimentConfig(
        dataset=small_dataset.path,
        arms={"plain": {"model": SMALL_BASELINE}, "full": {"model": values["model"], "latents": values["latents"]}},
        common={"epochs": 1, "batch_size": 64},
        baseline="plain",
        seeds=(0, 1),
        evaluation={"resamples": 200},
    )
    out = tmp_path_factory.mktemp("experiment")
    return config, out, run_experiment(config, out)


def test_every_arm_and_seed_is_in_the_report(experiment: tuple[ExperimentConfig, Path, dict[str, Any]]) -> None:
    _, out, report = experiment
    assert [model["model"] for model in report["models"]] == ["plain", "full"]
    assert {curve["seed"] for curve in report["curves"]} == {0, 1}
    assert "full" in (out / "report.html").read_text()
    assert (out / "report.json").is_file()


def test_finished_runs_are_kept(experiment: tuple[ExperimentConfig, Path, dict[str, Any]]) -> None:
    config, out, report = experiment
    weights = run_directory(out, "full", 1) / "model" / "weights.safetensors"
    before = weights.stat().st_mtime_ns
    assert run_experiment(config, out)["models"] == report["models"]
    assert weights.stat().st_mtime_ns == before


def test_scores_need_the_latents_they_were_trained_on(
    experiment: tuple[ExperimentConfig, Path, dict[str, Any]],
    make_latents: Callable[..., LatentStore],
    latent_provenance: dict[str, Any],
    tmp_path: Path,
) -> None:
    config, out, _ = experiment
    run = run_directory(out, "full", 0)
    assert len(score_run(run, "full").test) == 50
    other = make_latents(tmp_path / "other", Dataset.open(config.dataset), {**latent_provenance, "model": "another"})
    changed = (run / "config.yaml").read_text().replace(str(config.arms["full"]["latents"]), str(other.path))
    copy = tmp_path / "run"
    copy.mkdir()
    (copy / "config.yaml").write_text(changed)
    (copy / "model").symlink_to(run / "model")
    with pytest.raises(ProvenanceError, match="received model 'another'"):
        score_run(copy, "full")


def test_a_baseline_that_is_no_arm_is_refused(small_dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="one of the arms: a"):
        ExperimentConfig(dataset=small_dataset.path, arms={"a": {"model": SMALL_BASELINE}}, baseline="b")


def test_one_session_is_answered_with_its_parts(
    experiment: tuple[ExperimentConfig, Path, dict[str, Any]], small_dataset: Dataset
) -> None:
    _, out, _ = experiment
    recommender = SessionRecommender(run_directory(out, "plain", 0))
    answer = recommender.recommend(find_session(small_dataset, "s2-7"), k=3)
    scores = score_run(run_directory(out, "plain", 0), "plain").test
    row = scores.total[scores.session_ids.index("s2-7")]
    assert [small_dataset.catalog.rows[intent.id] for intent in answer.intents] == np.argsort(-row)[:3].tolist()
    for intent in answer.intents:
        assert intent.score == pytest.approx(intent.user_part + intent.query_part, abs=1e-6)
        assert 0 < intent.probability < 1
    with pytest.raises(DataError, match="'nobody'"):
        find_session(small_dataset, "nobody")


def test_the_command_line_evaluates_and_recommends(
    experiment: tuple[ExperimentConfig, Path, dict[str, Any]], tmp_path: Path
) -> None:
    config, out, _ = experiment
    runs = [f"plain={run_directory(out, 'plain', 0)}", f"full={run_directory(out, 'full', 0)}"]
    done = CliRunner().invoke(app, ["evaluate", *runs, "-o", str(tmp_path / "report"), "--set", "resamples=100"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "report" / "report.html").is_file()
    answered = CliRunner().invoke(
        app, ["recommend", str(run_directory(out, "plain", 0)), "--session", "s2-7", "-k", "2"]
    )
    assert answered.exit_code == 0, answered.output
    assert "user part" in answered.output
    dump_config(config, tmp_path / "experiment.yaml")
    again = CliRunner().invoke(app, ["experiment", str(tmp_path / "experiment.yaml"), "-o", str(out)])
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize("command", ["data", "embed", "train", "evaluate", "experiment", "recommend", "demo"])
def test_every_command_explains_itself(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert "Usage" in shown.output


def test_a_control_needs_the_vectors_it_stands_for(small_dataset: Dataset, tmp_path: Path) -> None:
    asked = CliRunner().invoke(app, ["embed", str(small_dataset.path), "-o", str(tmp_path), "--control", "random"])
    assert isinstance(asked.exception, ConfigError)


def prompts(count: int = 40) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 30, rng.integers(5, 20)).astype(np.int32) for _ in range(count)]


def test_random_vectors_have_the_norm_and_repeat() -> None:
    control = controls.RandomControl(16, norm=7.0)
    rows = control.embed(prompts(), prefix_ids=(), on_prompts=lambda count: None)
    np.testing.assert_allclose(rows.norm(dim=1), 7.0, rtol=1e-5)
    again = control.embed(prompts()[5:6], prefix_ids=(), on_prompts=lambda count: None)
    assert (again == rows[5:6]).all()
    assert abs(float((rows[0] @ rows[1]) / 49)) < 0.9


def test_tfidf_vectors_are_nearer_for_prompts_that_share_words() -> None:
    base = prompts()
    control = controls.TfidfControl(base, dim=12)
    near, far = base[0].copy(), base[1]
    near[-1] = 29
    first, second, third = control.embed([base[0], near, far], prefix_ids=(), on_prompts=lambda count: None)
    assert float(first @ second) > float(first @ third)


def test_a_control_fills_a_store_of_its_own(
    small_dataset: Dataset, small_latents: LatentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    monkeypatch.setattr(controls, "load_tokenizer", lambda ref: tokenizer)
    config = controls.EmbedConfig(model="any", chat_format="plain")
    controls.embed_control(
        small_dataset, tmp_path / "random", "random", config, like=small_latents.path, progress=False
    )
    store = LatentStore.open(tmp_path / "random")
    vectors = store.take(store.rows(small_dataset, "test"))
    expected = np.linalg.norm(small_latents.take(np.arange(len(small_latents))), axis=1).mean()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), expected, rtol=1e-4)
    assert store.provenance["control"] == "random"
