"""rgalign engine parity: what it measures, when it refuses, that it goes on, and what it exits with."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from rgalign.cli import app
from rgalign.config import load_config
from rgalign.data.dataset import Dataset
from rgalign.errors import ConfigError, DataError, ProvenanceError
from rgalign.metrics.ranking import session_metrics
from rgalign.reasoner.engine.build import Calibration, build_engine
from rgalign.reasoner.engine.reasoner import EngineReasoner
from rgalign.training.latents import LatentStore
from rgalign.training.parity.config import Candidate, Limits, ParityConfig
from rgalign.training.parity.gate import breaches
from rgalign.training.parity.parity import Sources, check_parity
from rgalign.training.parity.ranking import overlap
from rgalign.training.parity.vectors import closeness
from rgalign.training.ranker_files import load_ranker
from rgalign.training.ranker_scores import score_split

FAST = ParityConfig(resamples=200, layer_prompts=3, max_batch_tokens=64)


def check(trained: SimpleNamespace, out: Path, config: ParityConfig = FAST, **changes: Any) -> dict[str, Any]:
    extra = changes.pop("extra", ())
    sources = Sources(**{"dataset": trained.dataset, "ranker": trained.run, **changes})
    return check_parity(trained.model, sources, out, config, extra, progress=False)


@pytest.fixture(scope="module")
def compared(trained: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("out")
    return check(trained, out), out


def test_what_is_measured(compared: tuple[dict[str, Any], Path], trained: SimpleNamespace) -> None:
    report, out = compared
    engines = {engine["name"]: engine for engine in report["engines"]}
    assert list(engines) == ["engine-fp32", "engine-int8a12", "engine-int8"]
    assert (report["sessions"], report["prompts"]) == (60, 24)  # prompts of equal pages are one
    cosines = [engine["closeness"]["cosine_mean"] for engine in engines.values()]
    assert cosines[0] > 0.999999 > cosines[1] > cosines[2] > 0.9
    exact = engines["engine-fp32"]
    assert exact["breaches"] == []
    assert exact["closeness"]["max_error"] > 0  # another program, not the same vectors read twice
    assert exact["ranking"]["overlap"] == 1.0
    assert exact["ranking"]["metrics"]["recall@3"]["change"] == {"estimate": 0.0, "low": 0.0, "high": 0.0}

    # The definition's metrics are those that evaluation would report.
    loaded, dataset = load_ranker(trained.run), Dataset.open(trained.dataset)
    scores = score_split(loaded, dataset, "test", LatentStore.open(trained.latents))
    expected = session_metrics(scores.total, scores.clicked, scores.candidates, ks=(3,))
    for name, found in report["definition"]["metrics"].items():
        assert found["estimate"] == pytest.approx(expected.mean(name), abs=1e-6)
    assert 0.4 < report["definition"]["metrics"]["ndcg@3"]["estimate"] < 1.0  # the ranker has learnt, and can lose

    assert json.loads((out / "parity.json").read_text()) == json.loads(json.dumps(report))
    assert report["definition"]["reused"] == 24
    for name in ("int8a12", "int8"):
        assert [layer["layer"] for layer in engines[f"engine-{name}"]["layers"]] == [0, 1, 2]


def test_a_worse_engine_loses_and_is_caught(trained: SimpleNamespace, tmp_path: Path) -> None:
    """An "engine" whose vectors are another prompt's: the ranking must show it, and every kind of limit must bite."""
    store = LatentStore.open(trained.latents)
    build_engine(trained.model, tmp_path / "out" / "engine-int8", "int8")
    check(trained, tmp_path / "out", FAST.model_copy(update={"engines": ("int8",)}))
    own = LatentStore.open(tmp_path / "out" / "vectors" / "engine-int8")
    chunk = own.path / "chunks" / "00000.npy"
    rows = np.load(chunk)
    del store, own
    np.save(chunk, np.roll(rows, 7, axis=0))
    report = check(trained, tmp_path / "out", FAST.model_copy(update={"engines": ("int8",)}))
    assert not report["passed"]
    (engine,) = report["engines"]
    said = " | ".join(engine["breaches"])
    for name in ("cosine_mean", "cosine_min", "overlap", "recall@3", "ndcg@3", "ndcg@3 interval"):
        assert name in said
    change = engine["ranking"]["metrics"]["ndcg@3"]["change"]
    assert change["estimate"] < -0.02
    assert change["low"] < change["estimate"] < change["high"]


@pytest.mark.parametrize(
    ("limits", "found", "count"),
    [
        (Limits(), {}, 0),
        (Limits(cosine_mean=0.99), {"cosine_mean": 0.98}, 1),
        (Limits(cosine_mean=0.99), {"cosine_mean": 0.99}, 0),
        (Limits(cosine_min=0.9), {"cosine_min": float("nan")}, 1),
        (Limits(centred_mean=0.9), {"centred_mean": 0.5}, 1),
        (Limits(overlap=0.98), {"overlap": 0.97}, 1),
        (Limits(change=0.001, interval=None), {"estimate": 0.002}, 1),
        (Limits(change=0.001, interval=None), {"estimate": -0.002}, 1),
        (Limits(change=None, interval=0.004), {"high": 0.005}, 1),
        (Limits(change=None, interval=0.004), {"low": -0.005}, 1),
        (Limits(change=None, interval=None), {"low": -0.5, "estimate": -0.1}, 0),
    ],
)
def test_limits(limits: Limits, found: dict[str, float], count: int) -> None:
    change = {name: found.get(name, 0.0) for name in ("estimate", "low", "high")}
    near = {name: found.get(name, 1.0) for name in ("cosine_mean", "cosine_min", "centred_mean")}
    ranking = {"overlap": found.get("overlap", 1.0), "metrics": {"recall@3": {"change": change}}}
    assert len(breaches(limits, {"closeness": near, "ranking": ranking})) == count


def test_an_engine_on_a_gpu(
    compared: tuple[dict[str, Any], Path], trained: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no GPU by its kernels' definitions: the same sums as the CPU engine's, rounded elsewhere."""
    cuda = pytest.importorskip("rgalign.reasoner.engine.cuda.reasoner", reason="Triton is not installed")
    config = FAST.model_copy(update={"engines": ("int8",)})
    built = compared[1] / "engine-int8"
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="required a CUDA device"):
            check(trained, tmp_path, config, extra=[Candidate.parse(f"cuda:int8={built}")])
        monkeypatch.setattr(cuda, "load_cuda_engine", partial(cuda.load_cuda_engine, device="cpu"))
    report = check(trained, tmp_path, config, extra=[Candidate.parse(f"cuda:int8={built}")])
    on_cpu, on_gpu = report["engines"]
    assert on_gpu["name"] == "cuda-int8-engine-int8"
    assert on_gpu["provenance"]["device"] == "cuda"
    assert on_gpu["closeness"]["cosine_mean"] == pytest.approx(on_cpu["closeness"]["cosine_mean"], abs=0.005)
    assert on_gpu["closeness"]["max_error"] != on_cpu["closeness"]["max_error"]
    with pytest.raises(ConfigError, match="required =DIRECTORY of a built engine"):
        check(trained, tmp_path, config, extra=[Candidate.parse("cuda:int8")])


def test_an_interrupted_comparison_goes_on(
    trained: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = EngineReasoner.embed, []

    def dying(self: EngineReasoner, token_ids: Any, **others: Any) -> torch.Tensor:
        if "on_prompts" not in others:  # the build measures its state shift
            return forward(self, token_ids, **others)
        calls.append(self.manifest.dtype)
        if self.manifest.dtype == "int8":
            raise KeyboardInterrupt
        return forward(self, token_ids, **others)

    monkeypatch.setattr(EngineReasoner, "embed", dying)
    with pytest.raises(KeyboardInterrupt):
        check(trained, tmp_path)
    assert calls == ["fp32", "int8a12", "int8"]
    assert not (tmp_path / "parity.json").exists()
    calls.clear()
    monkeypatch.setattr(
        EngineReasoner, "embed", lambda self, ids, **others: calls.append(self) or forward(self, ids, **others)
    )
    first = check(trained, tmp_path)
    assert [reasoner.manifest.dtype for reasoner in calls] == ["int8"]
    layers = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "layers").iterdir()}
    assert check(trained, tmp_path) == first
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "layers").iterdir()} == layers
    assert len(layers) == 2


def test_vectors_of_other_stores_are_read_and_not_written(
    compared: tuple[dict[str, Any], Path], trained: SimpleNamespace, tmp_path: Path
) -> None:
    report, out = compared
    other = out / "vectors" / "engine-fp32"
    before = sorted(path.name for path in (other / "chunks").iterdir())
    again = check(trained, tmp_path, FAST.model_copy(update={"engines": ("fp32",)}), reuse=(other,))
    assert again["engines"][0]["closeness"] == report["engines"][0]["closeness"]
    assert len(LatentStore.open(tmp_path / "vectors" / "engine-fp32")) == 0
    assert sorted(path.name for path in (other / "chunks").iterdir()) == before


def test_some_sessions_and_no_ranker(trained: SimpleNamespace, tmp_path: Path) -> None:
    config = FAST.model_copy(update={"max_sessions": 10, "engines": ("fp32",), "split": "valid"})
    report = check(trained, tmp_path / "some", config)
    assert (report["sessions"], report["split"]) == (10, "valid")
    assert report["engines"][0]["ranking"]["overlap"] == 1.0
    alone = check(trained, tmp_path / "alone", config, ranker=None, latents=trained.latents)
    assert alone["ranker"] is None
    assert "ranking" not in alone["engines"][0]
    assert alone["engines"][0]["closeness"] == report["engines"][0]["closeness"]


def test_a_calibrated_engine_that_was_built_before(trained: SimpleNamespace, tmp_path: Path) -> None:
    prompts = [np.arange(row, row + 30, dtype=np.int32) for row in range(4)]
    build_engine(trained.model, tmp_path / "smooth", "int8", Calibration(prompts, alpha=0.5))
    config = FAST.model_copy(update={"engines": ("int8",), "layer_prompts": 0})
    extra = [Candidate.parse(f"engine:int8={tmp_path / 'smooth'}")]
    report = check(trained, tmp_path / "out", config, extra=extra)
    plain, smooth = report["engines"]
    assert smooth["name"] == "engine-int8-smooth"
    assert smooth["closeness"] != plain["closeness"]
    assert "layers" not in smooth
    with pytest.raises(ProvenanceError, match="dtype int8a12; received int8"):
        check(trained, tmp_path / "out", config, extra=[Candidate("engine", "int8a12", tmp_path / "smooth")])


def test_what_is_refused(trained: SimpleNamespace, tmp_path: Path) -> None:
    copied = tmp_path / "latents"
    shutil.copytree(trained.latents, copied)
    chunks = [path for path in sorted((copied / "chunks").glob("*.npy")) if "digests" not in path.name]
    for chunk in chunks:
        np.save(chunk, np.load(chunk)[:, ::-1])
    with pytest.raises(ProvenanceError, match="vectors of this model"):
        check(trained, tmp_path / "out", latents=copied)

    settings = (copied / "embed.yaml").read_text()
    (copied / "embed.yaml").write_text(settings.replace("Guess.", "Say something else."))
    with pytest.raises(ProvenanceError, match="latent queries of frame"):
        check(trained, tmp_path / "out", latents=copied)
    (copied / "embed.yaml").write_text(settings.replace("pooling: ltp", "pooling: external"))
    with pytest.raises(ConfigError, match="ltp or eos"):
        check(trained, tmp_path / "out", latents=copied)
    with pytest.raises(ConfigError, match="one of engine:fp32"):
        Candidate.parse("engine:int4")
    with pytest.raises(ConfigError, match="limits of unknown types"):
        load_config(ParityConfig, None, ["limits.int4.overlap=0.9"])
    with pytest.raises(ConfigError, match="layer_prompts"):
        load_config(ParityConfig, None, ["layer_prompts=1"])
    with pytest.raises(DataError, match="required shape"):
        closeness(np.ones((2, 3), np.float32), np.ones((2, 4), np.float32))


def test_one_limit_leaves_the_others(tmp_path: Path) -> None:
    found = load_config(ParityConfig, None, ["limits.int8.overlap=0.9"]).limits
    assert found["int8"].overlap == 0.9
    assert found["int8"].cosine_mean == ParityConfig().limits["int8"].cosine_mean
    assert found["fp32"] == ParityConfig().limits["fp32"]


def test_closeness_and_overlap_by_hand() -> None:
    exact = np.array([[3.0, 1.0], [3.0, -1.0]], np.float32)
    found = np.array([[3.0, -1.0], [3.0, 1.0]], np.float32)  # the mean is right, all that differs is wrong
    near = closeness(found, exact)
    assert near.cosine_mean == pytest.approx(0.8)
    assert near.centred_mean == pytest.approx(-1.0)
    assert near.max_error == pytest.approx(2.0)
    assert near.relative_mean == pytest.approx(2 / np.sqrt(10))
    assert closeness(found[:1], exact[:1]).centred_mean is None
    best = np.array([[1, 2, 3], [4, 5, -1], [0, 1, 2]])
    other = np.array([[3, 2, 9], [5, 4, -1], [7, 8, 9]])
    assert overlap(other, best).tolist() == pytest.approx([2 / 3, 1.0, 0.0])


def test_the_command(compared: tuple[dict[str, Any], Path], trained: SimpleNamespace) -> None:
    _, out = compared
    command = ["engine", "parity", trained.model, str(trained.dataset), "--ranker", str(trained.run), "-o", str(out)]
    command += ["--set", "resamples=200", "--set", "layer_prompts=3", "--set", "max_batch_tokens=64"]
    loose = ["--set", "limits.int8.overlap=0", "--set", "limits.int8.change=null", "--set", "limits.int8.interval=null"]
    loose += ["--set", "limits.int8.cosine_mean=0", "--set", "limits.int8.cosine_min=0"]
    loose += [part.replace("int8", "int8a12") for part in loose] + ["--set", "limits.int8a12.centred_mean=0"]
    runner = CliRunner(env={"COLUMNS": "200"})
    passed = runner.invoke(app, [*command, *loose])
    assert passed.exit_code == 0, passed.output
    assert "engine-int8a12" in passed.output
    assert "in which most error enters" in passed.output
    failed = runner.invoke(app, [*command, *loose, "--set", "limits.fp32.cosine_mean=1.1"])
    assert failed.exit_code == 1
    assert "engine-fp32: cosine_mean" in failed.output.replace("\n", " ")
