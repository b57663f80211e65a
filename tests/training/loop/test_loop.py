"""The whole loop: outcome, skipping, interruptions, changed keys, refusals, rounds."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from rgalign.cli import app
from rgalign.config import dump_config, load_config, parse_config
from rgalign.data.dataset import Dataset
from rgalign.errors import ConfigError, ProvenanceError, RewardError
from rgalign.files import read_json, sha256_file
from rgalign.training.alignment.alignment_config import AlignmentConfig
from rgalign.training.alignment.alignment_inputs import AlignmentInputs
from rgalign.training.embed import EMBED_CONFIG, EmbedConfig
from rgalign.training.latents import LatentStore
from rgalign.training.loop import ranker_steps
from rgalign.training.loop.graph import steps
from rgalign.training.loop.loop import run_loop
from rgalign.training.loop.loop_config import LoopConfig
from rgalign.training.loop.reasoner_steps import latents_outcome
from rgalign.training.loop.status import loop_status, next_line
from rgalign.training.ranker_files import load_ranker
from rgalign.training.ranker_scores import score_split
from rgalign.training.stage1_config import Stage1Config

Values = Callable[..., dict[str, Any]]
ROUND = ("generate", "reward", "select", "sft", "align", "reembed", "stage3", "control", "verdict")
STEPS = ["embed", "baseline", "stage1", *(f"round1/{name}" for name in ROUND), "evaluate"]
RESULTS = (
    "baseline/out/seed0/model/weights.safetensors",
    "stage1/out/seed0/model/weights.safetensors",
    "round1/generate/out/candidates.parquet",
    "round1/reward/out/rewards.parquet",
    "round1/select/out/preferences.parquet",
    "round1/sft/out/model/model.safetensors",
    "round1/align/out/model/model.safetensors",
    "round1/stage3/out/seed0/model/weights.safetensors",
    "round1/control/out/seed0/model/weights.safetensors",
)


def config_of(values: dict[str, Any]) -> LoopConfig:
    return parse_config(LoopConfig, values, where="test")


def result_hashes(run: Path) -> dict[str, str]:
    return {name: sha256_file(run / name) for name in RESULTS}


class Watch:
    """Notes each step's state, and stops the run where it is told to."""

    def __init__(self, stop_before: str | None = None, stop_at: tuple[str, int] | None = None) -> None:
        self.stop_before, self.stop_at = stop_before, stop_at
        self.states: dict[str, str] = {}

    def announce(self, step: str, state: str) -> None:
        if step == self.stop_before:
            raise KeyboardInterrupt
        self.states[step] = state

    def on_step(self, step: str, taken: int) -> None:
        if (step, taken) == self.stop_at:
            raise KeyboardInterrupt

    @property
    def run(self) -> list[str]:
        return [name for name, state in self.states.items() if state != "done"]


def go(values: dict[str, Any], run: Path, watch: Watch | None = None) -> dict[str, Any]:
    watch = watch or Watch()
    return run_loop(config_of(values), run, announce=watch.announce, on_step=watch.on_step, progress=False)


def go_until_stopped(values: dict[str, Any], run: Path, watch: Watch) -> Watch:
    with pytest.raises(KeyboardInterrupt):
        go(values, run, watch)
    return watch


@pytest.fixture(scope="module")
def finished(loop_values: Values, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    run = tmp_path_factory.mktemp("finished") / "run"
    go(loop_values(), run)
    return run


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A finished run to change. Its steps' own files still name the original's folders, which are there."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_a_finished_run_is_skipped_and_compares_four_arms_with_three_references(
    loop_values: Values, finished: Path
) -> None:
    watch = Watch()
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.parent != finished}
    summary = go(loop_values(), finished, watch)
    assert watch.states == dict.fromkeys(STEPS, "done")
    after = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.parent != finished}
    assert after == before
    assert set(summary["metrics"]) == {"baseline", "qe_rec", "control", "full"}
    assert set(summary["differences"]["full"]) == {"baseline", "qe_rec", "control"}
    found = summary["differences"]["full"]["baseline"]["ndcg@3"]
    assert found["low"] <= found["difference"] <= found["high"]
    means = {arm: metrics["ndcg@3"]["mean"] for arm, metrics in summary["metrics"].items()}
    assert found["difference"] == pytest.approx(means["full"] - means["baseline"])
    for reference in ("baseline", "qe_rec", "control"):
        assert (finished / f"evaluate/out/against-{reference}/report.html").is_file()
    report = (finished / "evaluate/out/report.md").read_text()
    assert "minus control" in report
    pages = re.findall(r"curves\]\((.*?)\)", report)
    assert len(pages) == 2  # SFT, and the alignment
    assert all((finished / "evaluate/out" / page).is_file() for page in pages)


def test_stage_3_and_its_control_share_start_seed_and_epochs_and_differ_in_the_reasoner(finished: Path) -> None:
    configs = [
        load_config(Stage1Config, finished / f"round1/{name}/out/seed0/config.yaml") for name in ("stage3", "control")
    ]
    assert configs[0].identity() == configs[1].identity()
    assert configs[0].warm_start == configs[1].warm_start == finished / "stage1/out/seed0"
    assert configs[0].latents == finished / "round1/reembed/out"
    assert configs[1].latents == finished / "embed/out"
    taken = [read_json(finished / f"round1/{name}/out/seed0/metrics.json")["steps"] for name in ("stage3", "control")]
    assert taken[0] == taken[1] == 16
    hashes = result_hashes(finished)
    assert len(set(hashes.values())) == len(hashes)


@pytest.mark.parametrize(("step", "objective"), [("sft", "sft"), ("align", "contrast")])
def test_the_step_s_own_command_finds_its_run_in_the_folder(finished: Path, step: str, objective: Any) -> None:
    folder = finished / "round1" / step
    config = load_config(AlignmentConfig, folder / "config.yaml")
    assert AlignmentInputs.open(config, objective).identity == read_json(folder / "out/inputs.json")


def test_dpo_s_own_defaults_are_written_out(loop_values: Values, tmp_path: Path) -> None:
    values = loop_values(objective="dpo")
    del values["alignment"]["learning_rate"]
    step = next(step for step in steps(config_of(values), tmp_path) if step.name == "round1/align")
    assert isinstance(step.config, AlignmentConfig)
    dump_config(step.config, tmp_path / "config.yaml")
    read = load_config(AlignmentConfig, tmp_path / "config.yaml").for_objective("dpo")
    assert read.learning_rate == 1e-6
    assert {"objective": "dpo", **read.identity()} == step.settings


def test_a_ranker_refuses_latent_queries_of_another_reasoner(finished: Path) -> None:
    dataset = Dataset.open(load_config(LoopConfig, finished / "config.yaml").dataset)
    old, aligned = (LatentStore.open(finished / name / "out") for name in ("embed", "round1/reembed"))
    stage1, stage3 = (load_ranker(finished / name / "out/seed0") for name in ("stage1", "round1/stage3"))
    assert not np.array_equal(old.take(old.rows(dataset, "test")), aligned.take(aligned.rows(dataset, "test")))
    for ranker, own, other in ((stage1, old, aligned), (stage3, aligned, old)):
        assert len(score_split(ranker, dataset, "test", own)) == 40
        with pytest.raises(ProvenanceError, match="required engine"):
            score_split(ranker, dataset, "test", other)


def test_stopped_between_and_within_steps_it_ends_with_the_same_bytes(
    loop_values: Values, finished: Path, tmp_path: Path
) -> None:
    values, run = loop_values(), tmp_path / "run"
    go_until_stopped(values, run, Watch(stop_at=("stage1", 19)))
    assert next_line(loop_status(run)) == "next: stage1 (interrupted)"
    again = go_until_stopped(values, run, Watch(stop_before="round1/select"))
    assert again.states["baseline"] == "done"
    assert again.states["stage1"] == "interrupted"
    go_until_stopped(values, run, Watch(stop_at=("round1/align", 3)))
    go_until_stopped(values, run, Watch(stop_at=("round1/stage3", 9)))
    last = Watch()
    go(values, run, last)
    assert last.run == ["round1/stage3", "round1/control", "round1/verdict", "evaluate"]
    assert result_hashes(run) == result_hashes(finished)


def test_a_changed_key_does_anew_what_depends_on_it_and_nothing_else(loop_values: Values, copied: Path) -> None:
    values = loop_values(stage3={"epochs": 1})
    watch = Watch()
    go(values, copied, watch)
    assert watch.run == ["round1/stage3", "round1/control", "round1/verdict", "evaluate"]
    assert read_json(copied / "round1/control/out/seed0/metrics.json")["epochs"] == 1
    assert not list(copied.rglob("*.discarded"))

    values = loop_values(stage3={"epochs": 1}, select={"strategy": "V4"})
    watch = go_until_stopped(values, copied, Watch(stop_at=("round1/sft", 2)))
    assert watch.run == ["round1/select", "round1/sft"]
    states = {row.name: row.state for row in loop_status(copied)}
    assert states["round1/sft"] == "interrupted"
    assert [name for name, state in states.items() if state == "outdated"] == [
        f"round1/{name}" for name in ("align", "reembed", "stage3", "verdict")
    ] + ["evaluate"]
    assert states["round1/control"] == "done"


def test_stage_3_and_its_control_may_leave_out_the_aligned_sessions(loop_values: Values, copied: Path) -> None:
    watch = Watch()
    go(loop_values(recalibrate_on="unaligned"), copied, watch)
    assert watch.run == ["round1/stage3", "round1/control", "round1/verdict", "evaluate"]
    selection = copied / "round1/select/out"
    aligned = len(pq.read_table(selection / "preferences.parquet"))
    for name in ("stage3", "control"):
        run = copied / f"round1/{name}/out/seed0"
        assert load_config(Stage1Config, run / "config.yaml").without == selection
        used = 240 - aligned
        assert 0 < read_json(run / "metrics.json")["steps"] == 2 * -(-used // 32) < 16


def test_new_settings_of_the_reward_keep_the_fold_rankers_and_equal_rewards_end_it_there(
    loop_values: Values, copied: Path
) -> None:
    folds = sorted((copied / "round1/reward/out/folds").glob("*/run/model/weights.safetensors"))
    before = [path.stat().st_mtime_ns for path in folds]
    assert len(before) == 2
    watch = Watch()
    go(loop_values(reward={"gate_sessions": 50}), copied, watch)
    assert watch.run == ["round1/reward"]
    assert [path.stat().st_mtime_ns for path in folds] == before
    assert (
        read_json(copied / "round1/reward/config.yaml".replace("config.yaml", "inputs.json"))["settings"][
            "gate_sessions"
        ]
        == 50
    )


def test_a_refused_gate_stops_the_run_which_goes_on_once_it_passes(loop_values: Values, copied: Path) -> None:
    with pytest.raises(RewardError, match="gate"):
        go(loop_values(reward={"gate_sessions": 5}), copied)
    states = {row.name: row.state for row in loop_status(copied)}
    assert states["round1/generate"] == "done"
    assert states["round1/reward"] == "interrupted"
    assert states["round1/select"] == "outdated"
    assert not (copied / "round1/reward/metrics.json").exists()
    watch = Watch()
    go(loop_values(), copied, watch)
    assert watch.run == ["round1/reward"]  # the same rewards as before the detour


def test_a_second_round_begins_only_after_a_better_one(
    loop_values: Values, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = read_json(copied / "round1/verdict/metrics.json")["result"]
    assert verdict["verdict"].startswith("inconclusive")
    watch = Watch()
    go(loop_values(loops=2), copied, watch)
    assert watch.run == []

    better = {**verdict, "verdict": "better"}
    monkeypatch.setattr(ranker_steps, "validation_verdict", lambda *given: better)
    (copied / "round1/verdict/done").unlink()
    watch = Watch()
    go(loop_values(loops=2), copied, watch)
    assert watch.run == [
        "round1/verdict",
        *(f"round2/{name}" for name in ("judge", *ROUND)),
        "evaluate",
    ]
    stage3, control = (
        load_config(Stage1Config, copied / f"round2/{name}/out/seed0/config.yaml") for name in ("stage3", "control")
    )
    assert stage3.warm_start == copied / "round1/stage3/out/seed0"
    assert control.warm_start == copied / "round1/control/out/seed0"
    assert control.latents == copied / "embed/out"
    judged = read_json(copied / "round2/reward/out/metrics.json")["reasoner"]
    assert judged != read_json(copied / "round1/reward/out/metrics.json")["reasoner"]
    arms = read_json(copied / "evaluate/inputs.json")["settings"]["arms"]
    assert (arms["full"], arms["control"]) == ("round2/stage3", "round2/control")


def test_other_directories_and_launchers_are_refused(
    loop_values: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ProvenanceError, match="an empty directory"):
        go(loop_values(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(ProvenanceError, match="run directory of `rgalign train all`"):
        loop_status(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process"):
        go(loop_values(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_status_command_shows_states_times_and_sizes(finished: Path) -> None:
    shown = CliRunner().invoke(app, ["train", "status", str(finished)], catch_exceptions=False).output
    assert "round1/control" in shown
    assert "all done" in shown
    assert "kB" in shown
    rows = {row.name: row for row in loop_status(finished)}
    assert list(rows) == STEPS
    assert rows["round1/sft"].seconds > 0
    assert rows["stage1"].size_bytes > 10_000


def test_latent_queries_of_shorter_prompts_are_others(finished: Path, tmp_path: Path) -> None:
    first = latents_outcome(finished / "embed/out")
    shutil.copytree(finished / "embed/out", tmp_path / "out")
    assert latents_outcome(tmp_path / "out") == first
    config = load_config(EmbedConfig, tmp_path / "out" / EMBED_CONFIG)
    dump_config(config.model_copy(update={"max_tokens": 40}), tmp_path / "out" / EMBED_CONFIG)
    assert latents_outcome(tmp_path / "out") == {**first, "max_tokens": 40}
