"""Tables 2 to 4 on a tiny dataset and model: rows, skipping, sharing, interruption, refusals, what is written."""

from __future__ import annotations

import io
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from rgalign.cli import app
from rgalign.config import dump_config, load_config, parse_config
from rgalign.data.dataset import Dataset
from rgalign.errors import ConfigError, ProvenanceError, RewardError
from rgalign.files import read_json
from rgalign.training.alignment import alignment_config
from rgalign.training.experiment import run_config
from rgalign.training.latents import LatentStore
from rgalign.training.loop import reasoner_steps
from rgalign.training.loop.status import next_line
from rgalign.training.ranker_files import load_ranker
from rgalign.training.ranker_scores import score_split
from rgalign.training.report_html import points
from rgalign.training.sessions import evenly_spaced
from rgalign.training.stage1_config import Stage1Config
from rgalign.training.tables.measure import score_row, transplanted
from rgalign.training.tables.row import RowRuns
from rgalign.training.tables.run_tables import MAKERS, require_tables, run_table, table_steps
from rgalign.training.tables.shared_steps import Workshop, selection
from rgalign.training.tables.table_console import print_table
from rgalign.training.tables.tables_config import TablesConfig
from rgalign.training.tables.tables_status import tables_status

Values = Callable[..., dict[str, Any]]
EXPERIMENTS = Path(__file__).parents[3] / "bench/experiments"
ROWS = ["baseline", "qe_rec", "V2_cl_frozen", "V2_cl_restandardised", "control", "V2_dpo", "V2_full"]


def config_of(values: dict[str, Any]) -> TablesConfig:
    return parse_config(TablesConfig, values, where="test")


class Watch:
    """Notes each step's state; stops the run before a step or at an optimiser step."""

    def __init__(self, stop_before: str | None = None, stop_at: tuple[str, int] | None = None) -> None:
        self.stop_before, self.stop_at = stop_before, stop_at
        self.states: dict[str, str] = {}

    def announce(self, step: str, state: str) -> None:
        if step == self.stop_before:
            raise KeyboardInterrupt
        assert step not in self.states, "each step once"
        self.states[step] = state

    def on_step(self, step: str, taken: int) -> None:
        if (step, taken) == self.stop_at:
            raise KeyboardInterrupt

    @property
    def run(self) -> list[str]:
        return [name for name, state in self.states.items() if state != "done"]


def go(number: int, values: dict[str, Any], out: Path, watch: Watch | None = None) -> dict[str, Any]:
    watch = watch or Watch()
    return dict(
        run_table(number, config_of(values), out, announce=watch.announce, on_step=watch.on_step, progress=False)
    )


@pytest.fixture(scope="module")
def finished(table_values: Values, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Table 2, interrupted in an alignment and gone on with."""
    out = tmp_path_factory.mktemp("tables") / "out"
    values = table_values(alignment_seeds=[3])
    with pytest.raises(KeyboardInterrupt):
        go(2, values, out, Watch(stop_at=("V2/seed3/cl", 2)))
    assert next_line(tables_status(out)) == "next: V2/seed3/cl (interrupted)"
    watch = Watch()
    go(2, values, out, watch)
    assert watch.states["V2/seed3/sft"] == "done"
    assert watch.states["V2/seed3/cl"] == "interrupted"
    return out


@pytest.fixture
def table(finished: Path) -> dict[str, Any]:
    return dict(read_json(finished / "table2/out/table.json"))


def test_a_finished_table_is_skipped(table_values: Values, finished: Path, table: dict[str, Any]) -> None:
    watch = Watch()
    assert go(2, table_values(alignment_seeds=[3]), finished, watch) == table
    assert watch.run == []
    assert list(watch.states) == [row.name for row in tables_status(finished)]


def test_table_2_has_the_paper_s_rows_each_with_its_comparisons(table: dict[str, Any]) -> None:
    assert [row["name"] for row in table["rows"]] == ROWS
    assert [list(row["against"]) for row in table["rows"]] == [
        [],
        ["baseline"],
        ["qe_rec", "baseline"],
        ["qe_rec", "baseline", "V2_cl_frozen"],
        ["qe_rec", "baseline"],
        ["control", "qe_rec", "baseline"],
        ["control", "qe_rec", "baseline", "V2_dpo"],
    ]
    assert table["metrics"] == ["auc", "recall@3", "recall@5", "ndcg@3", "ndcg@5", "mrr_all"]
    rows = {row["name"]: row for row in table["rows"]}
    means = {name: row["metrics"]["ndcg@3"]["mean"] for name, row in rows.items()}
    assert means["qe_rec"] > means["baseline"] + 0.2  # the prompt says the title, which the baseline cannot read
    found = rows["V2_full"]["against"]["control"]["ndcg@3"]
    assert found["difference"] == pytest.approx(means["V2_full"] - means["control"])
    assert found["low"] <= found["difference"] <= found["high"]
    assert table["improvements"][0]["metrics"]["ndcg@3"] == rows["V2_full"]["against"]["baseline"]["ndcg@3"]["relative"]


def test_the_control_and_both_recalibrations_start_alike_and_differ_in_the_reasoner(finished: Path) -> None:
    names = ("control", "V2/seed3/dpo_stage3", "V2/seed3/cl_stage3")
    configs = [load_config(Stage1Config, finished / f"{name}/out/seed0/config.yaml") for name in names]
    assert len({str(config.identity()) for config in configs}) == 1
    assert {config.warm_start for config in configs} == {finished / "stage1/out/seed0"}
    latents = [finished / f"{name}/out" for name in ("embed", "V2/seed3/dpo_latents", "V2/seed3/cl_latents")]
    assert [config.latents for config in configs] == latents
    assert len({LatentStore.open(path).hash for path in latents}) == 3
    objectives = [read_json(finished / f"V2/seed3/{name}/out/metrics.json")["objective"] for name in ("cl", "dpo")]
    assert objectives == ["contrast", "dpo"]
    assert read_json(finished / "V2/seed3/dpo/inputs.json")["settings"]["learning_rate"] == 1e-4


def test_a_frozen_row_is_the_ranker_of_stage_1_on_the_aligned_latent_queries(
    finished: Path, table_values: Values
) -> None:
    config = config_of(table_values())
    dataset = Dataset.open(config.dataset)
    run, latents = finished / "stage1/out/seed0", "V2/seed3/cl_latents"
    store, old = LatentStore.open(finished / latents / "out"), LatentStore.open(finished / "embed/out")
    with pytest.raises(ProvenanceError, match="required engine"):
        score_split(load_ranker(run), dataset, "test", store)
    own, frozen, anew = (
        score_row(RowRuns("stage1", None if scored == "own" else latents, 3, scored), run, dataset, finished)
        for scored in ("own", "frozen", "restandardised")
    )
    assert own.user_part is not None
    for other in (frozen, anew):
        np.testing.assert_array_equal(own.user_part, other.user_part)  # the weights are the same
        assert not np.array_equal(own.total, other.total)
    assert not np.array_equal(frozen.total, anew.total)
    # New statistics of the latent queries that the ranker was trained on are its own statistics.
    same = score_split(transplanted(load_ranker(run), old, dataset, anew=run_config(run)), dataset, "test", old)
    np.testing.assert_allclose(same.total, own.total, atol=1e-6)
    with pytest.raises(ConfigError, match="query tower"):
        transplanted(load_ranker(finished / "baseline/out/seed0"), store, dataset, anew=None)


def test_other_tables_share_the_steps_and_an_empty_strategy_is_a_row_that_says_so(
    table_values: Values, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = reasoner_steps.select

    def select(config: Any, out: Path) -> Any:
        if config.strategy == "V3":
            raise RewardError(where="selection", required="strategy V3 to keep a session", received="36 x no such")
        return real(config, out)

    monkeypatch.setattr(reasoner_steps, "select", select)
    values = table_values(alignment_seeds=[3], strategies=["V2", "V3"], recalibrated=["V2"])
    watch = Watch()
    table = go(4, values, finished, watch)
    measured = ["qe_rec", "V2_cl_frozen", "control", "V2_full"]  # by each table, for its own alignment seeds
    assert watch.run == ["V3/select", *(f"measure/table4/{row}" for row in measured), "table4"]
    rows = {row["name"]: row for row in table["rows"]}
    assert list(rows) == ["qe_rec", "V2_cl_frozen", "V3_cl_frozen", "control", "V2_full"]
    assert rows["V3_cl_frozen"]["metrics"] is None
    assert rows["V3_cl_frozen"]["note"] == "no session kept: 36 x no such"
    assert "no session kept" in (finished / "table4/out/table.md").read_text()
    again = Watch()
    assert go(4, values, finished, again) == table
    assert again.run == []
    with pytest.raises(RewardError, match="required strategy V3 to keep a session; received 36 x no such"):
        list(selection(Workshop(config_of(values), finished), "V3"))  # as tables 2 and 3 ask
    dump_config(config_of({**values, "select": {**values["select"], "strategy": "V3"}}), finished / "table3.yaml")
    assert [row.state for row in tables_status(finished) if row.name == "table3"] == ["to do"]  # and cannot go on
    (finished / "table3.yaml").unlink()
    assert {row.name for row in tables_status(finished)} >= {"table2", "table4", "V3/select", "V2/seed3/dpo"}

    monkeypatch.setattr(reasoner_steps, "select", real)
    with pytest.raises(KeyboardInterrupt):  # once there is something to align on, the row is made
        go(4, {**values, "select": {"strategy": "V2", "max_rejected": 2}}, finished, watch := Watch("V3/seed3/sft"))
    assert watch.run[:2] == ["V2/select", "V3/select"]


def test_table_3_aligns_the_other_poolings_by_sft_alone(table_values: Values, finished: Path) -> None:
    watch = Watch()
    values = table_values(alignment_seeds=[3], poolings=["mean"], pooled={"dtype": "bfloat16"})
    table = go(3, values, finished, watch)
    assert [name for name in watch.run if (finished / name / "out/model").exists()] == []  # no new alignment
    assert [row["name"] for row in table["rows"]] == ["qe_rec_mean", "qe_rec", "V2_sft_mean", "V2_sft", "V2_full"]
    stores = {name: LatentStore.open(finished / name / "out") for name in ("mean/embed", "V2/seed3/sft_mean_latents")}
    assert "Mean: computed by transformers in bfloat16; the rest by the engine in fp32." in table["remarks"]
    read = {(store.provenance["pooling"], store.provenance["dtype"]) for store in stores.values()}
    assert read == {("mean", "bfloat16")}
    aligned = stores["V2/seed3/sft_mean_latents"].provenance["model"]
    assert aligned == LatentStore.open(finished / "V2/seed3/sft_latents/out").provenance["model"]
    assert aligned != stores["mean/embed"].provenance["model"]
    assert list(table["rows"][-1]["against"]) == ["V2_sft_mean", "V2_sft", "qe_rec"]


def test_several_alignment_seeds_are_whole_alignments_of_their_own(table_values: Values, tmp_path: Path) -> None:
    config = config_of(table_values(alignment_seeds=[0, 1], seeds=[0, 1], recalibrate_on="unaligned"))
    steps = {step.name: step for step in table_steps(2, Workshop(config, tmp_path))}
    for seed in (0, 1):
        for name in ("sft", "cl", "dpo", "cl_latents", "dpo_latents", "cl_stage3", "dpo_stage3"):
            assert f"V2/seed{seed}/{name}" in steps
        assert steps[f"V2/seed{seed}/cl"].settings["seed"] == seed
        assert set(steps[f"V2/seed{seed}/cl_stage3"].settings) == {"seed0", "seed1"}
        assert "V2/select" in steps[f"V2/seed{seed}/cl_stage3"].after
    assert "V2/control" in steps  # its sessions depend on the selection
    plan = MAKERS[2][1](Workshop(config, tmp_path))
    full = next(row for row in plan.rows if row.name == "V2_full")
    assert [(run.rankers, run.alignment_seed) for run in full.runs] == [
        ("V2/seed0/cl_stage3", 0),
        ("V2/seed1/cl_stage3", 1),
    ]
    assert full.against[0] == "V2_control"
    assert steps["table2"].after[-1] == "measure/table2/V2_full"


def test_what_is_written_says_inconclusive_and_can_be_read(finished: Path, table: dict[str, Any]) -> None:
    text = (finished / "table2/out/table.md").read_text()
    assert "| Model | Stage 1 | Stage 2 | Stage 3 | GAUC | R@3 | R@5 | N@3 | N@5 | MRR |" in text
    assert "control of stage 3" in text
    spanning = [
        found
        for row in table["rows"]
        for metrics in row["against"].values()
        for found in metrics.values()
        if found["low"] <= 0 <= found["high"]
    ]
    assert spanning
    assert all(found["verdict"].startswith("inconclusive") for found in spanning)
    assert "inconclusive" in text
    root = ElementTree.fromstring((finished / "table2/out/forest.svg").read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    labels = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "RGAlign-Rec (Full) \N{MINUS SIGN} control of stage 3" in labels
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 15 + 5 * 6
    console = Console(width=80, record=True, file=io.StringIO())
    print_table(table, console)
    shown = console.export_text()
    assert "(Full)" in shown
    cell = table["rows"][1]["against"]["baseline"]["recall@3"]  # not the primary metric
    assert f"{points(cell['low'], sign=True)}," in shown
    assert "~" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_commands_print_the_table_and_its_steps(finished: Path) -> None:
    arguments = ["tables", "2", "--config", str(finished / "table2.yaml"), "-o", str(finished)]
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False).output
    assert "Table 2: Main results" in shown
    assert "written: " in shown
    status = CliRunner().invoke(app, ["train", "status", str(finished)], catch_exceptions=False).output
    assert "measure/table2/V2_cl_frozen" in status


@pytest.mark.parametrize("number", [2, 3, 4])
def test_the_experiments_configurations_are_sound(number: int) -> None:
    config = load_config(TablesConfig, EXPERIMENTS / f"table{number}.yaml")
    assert len(config.seeds) == 3
    assert number == 4 or config.select_config(Path()).strategy == "V1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alignment_seeds": [1, 1]}, "different seeds"),
        ({"loops": 2}, "one round"),
        ({"embed": {"pooling": "mean"}, "objective": "dpo"}, "table 3 adds the others"),
        ({"sft": {"seed": 1}}, "alignment_seeds has them"),
        ({"poolings": ["ltp"]}, "external, mean, eos"),
        ({"pooled": {"dtyp": "bfloat16"}}, "section pooled: required a known key"),
        ({"pooled": {"backend": "engine"}}, "section pooled: required no key"),
        ({"strategies": ["V2"], "recalibrated": ["V1"]}, "of the strategies V2"),
        ({"dpo": {"learning_rat": 1}}, "section dpo"),
    ],
)
def test_configurations_that_cannot_be_are_refused(table_values: Values, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(table_values(**changes))


def test_what_is_missing_is_said_before_anything_runs(
    table_values: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = table_values(generate={"teachers": [{"kind": "neighbour"}]}, select={"strategy": "V1"})
    with pytest.raises(ConfigError, match="section select: .*a teacher named 'reasoner' .* received V2 with"):
        go(4, values, tmp_path / "out", Watch())
    monkeypatch.setattr(alignment_config, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="alignment: .*no deepspeed"):
        go(2, {**values, "dpo": {"tuning": "full", "zero_stage": 1}}, tmp_path / "out", Watch())
    assert not (tmp_path / "out").exists()


def test_statistics_are_taken_from_the_sessions_that_the_ranker_trained_on(finished: Path) -> None:
    run, store = finished / "stage1/out/seed0", LatentStore.open(finished / "embed/out")
    config = run_config(run)
    dataset = Dataset.open(config.dataset)
    count = dataset.num_rows("train")
    loaded, few = load_ranker(run), config.model_copy(update={"max_train": 3})
    tower = transplanted(loaded, store, dataset, anew=few).ranker.query_tower
    expected = deepcopy(tower)
    expected.set_statistics(torch.from_numpy(store.take(store.rows(dataset, "train")[evenly_spaced(count, 3)])))
    assert all(torch.equal(a, b) for a, b in zip(tower.buffers(), expected.buffers(), strict=True))


def test_latent_queries_may_be_put_there_before_the_first_start(tmp_path: Path) -> None:
    (tmp_path / "embed/out").mkdir(parents=True)
    require_tables(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ProvenanceError, match="table<number>.yaml"):
        require_tables(tmp_path)


def test_other_directories_are_refused(table_values: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yaml").write_text("loops: 1")
    with pytest.raises(ProvenanceError, match="table<number>.yaml"):
        go(2, table_values(), tmp_path)
    with pytest.raises(ProvenanceError, match="directory of `rgalign tables`"):
        tables_status(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process"):
        go(2, table_values(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
