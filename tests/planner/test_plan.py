"""Plans: the fewest replicas that keep a target, checked by trying one fewer; refused curves; the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rgalign.cli import app
from rgalign.errors import ConfigError, DataError
from rgalign.planner import Curve, OfflineConfig, PlanConfig, plan, plan_offline, read_curve
from rgalign.planner.search import _trial

CURVE = Curve(
    tokens=(100, 3_200), ms=(4.0, 64.0), lengths=(80, 100, 120), read_ms=0.5, tower_ms=0.3, answer_ms=0.2, gpus=1
)


def test_one_replica_fewer_does_not_keep_the_target() -> None:
    config = PlanConfig(qps=2_000, p99_ms=40, hourly_price=3.6)
    found = plan(CURVE, config)
    assert found.replicas == found.needed + 1 == found.gpus
    assert _trial(CURVE, config, config.qps, found.needed).keeps(config)
    assert not _trial(CURVE, config, config.qps, found.needed - 1).keeps(config)
    assert found.trials["steady"].keeps(config)
    assert found.headroom >= 0
    assert found.cost_per_million == pytest.approx(found.replicas * 3.6 / (2_000 * 3_600) * 1e6)
    assert found.trials["crash"].lost > 0 == found.trials["update"].lost


def test_more_load_or_a_tighter_target_needs_more_replicas() -> None:
    few = plan(CURVE, PlanConfig(qps=1_000, p99_ms=60)).needed
    assert plan(CURVE, PlanConfig(qps=3_000, p99_ms=60)).needed >= 2 * few
    assert plan(CURVE, PlanConfig(qps=1_000, p99_ms=12)).needed > few


def test_a_slow_host_is_named_as_what_breaks_first() -> None:
    slow = CURVE.model_copy(update={"read_ms": 20.0})
    assert "host" in plan(slow, PlanConfig(qps=200, p99_ms=500)).breaks_first
    assert "reasoner" in plan(CURVE, PlanConfig(qps=2_000, p99_ms=500)).breaks_first


def test_a_target_below_one_request_is_refused() -> None:
    with pytest.raises(ConfigError, match="which one request takes of an idle replica"):
        plan(CURVE, PlanConfig(qps=10, p99_ms=3))


def test_offline_hours_are_sessions_over_throughput() -> None:
    found = plan_offline(
        CURVE,
        OfflineConfig(sessions=1_000_000, passes=3, devices=4, train_sessions=1_000, train_epochs=10, train_ms=36),
    )
    assert found.embed_hours == pytest.approx(3e6 / CURVE.rows_per_second / 4 / 3_600)
    assert found.train_hours == pytest.approx(0.1 / 4)
    assert found.device_hours == pytest.approx(4 * (found.embed_hours + found.train_hours))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": [200, 100]}, "tokens must ascend"),
        ({"ms": [1.0]}, "one length"),
        ({"jitter": []}, "jitter"),
        ({"lengths": [1_000]}, "at most longest"),
        ({"speed": 1}, "known key"),
    ],
)
def test_a_file_that_is_no_curve_is_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    path = tmp_path / "curve.json"
    path.write_text(json.dumps(CURVE.model_dump(mode="json") | change), encoding="utf-8")
    with pytest.raises(DataError, match=said):
        read_curve(path)


def test_the_command_writes_plan_and_plot_and_says_what_is_missing(tmp_path: Path) -> None:
    curve, out, plot = tmp_path / "curve.json", tmp_path / "plan.json", tmp_path / "plan.png"
    CURVE.write(curve)
    assert read_curve(curve) == CURVE
    run = CliRunner().invoke
    arguments = ["plan", "--qps", "500", "--p99-ms", "60", "--curve", str(curve), "-o", str(out), "--plot", str(plot)]
    shown = run(app, arguments, catch_exceptions=False)
    assert shown.exit_code == 0
    assert "breaks first" in shown.output
    assert json.loads(out.read_text())["plan"]["replicas"] >= 2
    assert plot.stat().st_size > 10_000
    with pytest.raises(ConfigError, match="--qps and --curve"):
        run(app, ["plan"], catch_exceptions=False)
    shown = run(app, ["plan", "offline", "--curve", str(curve)], catch_exceptions=False)
    assert "embedding:" in shown.output
