"""A run becomes a bundle, and a bundle is read as the run was."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from rgalign.bundle import read_bundle, read_manifest
from rgalign.bundle.showing import show_threshold
from rgalign.cli import app
from rgalign.data.dataset import Dataset
from rgalign.errors import ConfigError, DataError
from rgalign.models.layers import unit
from rgalign.training.ranker_files import load_ranker


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["bundle", *map(str, arguments)])


def test_what_is_read_is_the_run(run: Path, bundle_dir: Path) -> None:
    bundle, loaded = read_bundle(bundle_dir), load_ranker(run)
    table = Dataset.open(run.parent / "data").table("test")
    batch = loaded.encoder.encode(table)
    expected = loaded.ranker.user(batch)
    assert expected.std() > 0.01
    assert torch.equal(unit(bundle.user_tower(bundle.encoder.encode(table), bundle.intent_table)), expected)
    assert torch.equal(bundle.index.decoded, loaded.ranker.intents())
    assert bundle.catalog.hash == loaded.catalog.hash
    assert bundle.projection is not None
    assert loaded.ranker.query_tower is not None
    states = torch.randn(5, bundle.projection.weight.shape[1])
    projected = states @ bundle.projection.weight.T + bundle.projection.bias
    assert torch.allclose(projected, loaded.ranker.query_tower(states), atol=1e-5)
    assert bundle.manifest.omega == pytest.approx(0.7)
    assert bundle.manifest.full is not None
    assert bundle.manifest.full.scale > 0


def test_two_bundles_of_one_run_are_the_same_bundle(
    run: Path, bundle_dir: Path, tiny: ModuleType, tmp_path: Path
) -> None:
    again = tiny.make_bundle(run, tmp_path / "again")
    assert read_manifest(again).hash == read_manifest(bundle_dir).hash
    assert read_manifest(tiny.make_bundle(run, tmp_path / "int8", precision="int8")).hash != read_manifest(again).hash


def test_nothing_is_written_over(run: Path, bundle_dir: Path, tiny: ModuleType) -> None:
    before = (bundle_dir / "manifest.json").read_bytes()
    with pytest.raises(ConfigError, match="a new directory"):
        tiny.make_bundle(run, bundle_dir)
    assert (bundle_dir / "manifest.json").read_bytes() == before


def test_a_failed_build_leaves_nothing(
    run: Path, tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path) -> None:
        raise DataError(where=str(path), required="a bundle", received="a fault of this test")

    monkeypatch.setattr("rgalign.bundle.write.read_bundle", broken)
    with pytest.raises(DataError, match="a fault of this test"):
        tiny.make_bundle(run, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_another_engine_than_the_latent_queries_is_refused(run: Path, tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fp32, whose latent queries"):
        tiny.make_bundle(run, tmp_path / "bundle", engine_dtype="int8")


def test_the_command_line(run: Path, bundle_dir: Path, tmp_path: Path) -> None:
    made = call("build", run, "-o", tmp_path / "made", "--show-precision", "0")
    assert made.exit_code == 0, made.exception
    assert "show from probability: 0.000" in made.output
    verified = call("verify", bundle_dir)
    assert verified.exit_code == 0
    assert f"hash: {read_manifest(bundle_dir).hash[:12]}" in verified.output
    inspected = call("inspect", bundle_dir)
    assert "engine/tensors.safetensors" in inspected.output
    assert "intents.parquet" in inspected.output
    shutil.copytree(bundle_dir, tmp_path / "bad")
    (tmp_path / "bad" / "schema.yaml").write_text("name: other\n")
    assert isinstance(call("verify", tmp_path / "bad").exception, DataError)


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        (0.0, 0.0),
        (0.5, 0.0),  # all sessions together: 3 of 6
        (0.6, 0.4),  # 3 of 5
        (0.7, 0.8),  # the two at 0.8 count together
        (1.0, 0.8),
    ],
)
def test_show_threshold(precision: float, expected: float) -> None:
    probability = np.array([0.8, 0.8, 0.6, 0.5, 0.4, 0.1])
    outcome = np.array([1.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    assert show_threshold(probability, outcome, precision) == expected


def test_a_precision_that_no_threshold_reaches() -> None:
    with pytest.raises(DataError, match="at most 0.5"):
        show_threshold(np.array([0.9, 0.9]), np.array([1.0, 0.0]), 0.9)
