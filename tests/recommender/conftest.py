"""The bundle of tests/bundle, two of them, and a reasoner whose faults a test switches."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from rgalign.bundle import Bundle
from rgalign.data.dataset import Dataset
from rgalign.recommender import Recommender, RecommenderConfig, engine_of, load

TINY = Path(__file__).parent.parent / "bundle" / "tiny_bundle.py"


def load_tiny() -> ModuleType:
    if "tiny_bundle" not in sys.modules:
        spec = importlib.util.spec_from_file_location("tiny_bundle", TINY)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["tiny_bundle"] = module
        spec.loader.exec_module(module)
    return sys.modules["tiny_bundle"]


class FaultyReasoner:
    """The bundle's engine, with a fault of one's choice.

    ``fault``: None, "crash", "exit", "nan", "huge", "zero", "columns", "rows", "type", "hang" or "slow"; "one_nan" is
    one row, once.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.fault: str | None = None
        self.calls = 0
        self.rows = 0
        self.release = threading.Event()
        self.slow_s = 0.15

    def embed(self, token_ids: Sequence[Any], *, prefix_ids: Sequence[int]) -> Any:
        self.calls += 1
        self.rows += len(token_ids)
        fault = self.fault
        if fault == "crash":
            raise RuntimeError("a fault of this test")
        if fault == "exit":
            raise SystemExit(3)
        if fault == "hang":
            self.release.wait(120)
        if fault == "slow":
            self.release.wait(self.slow_s)
        latents = self.inner.embed(token_ids, prefix_ids=prefix_ids).numpy()
        if fault == "nan":
            latents[:] = np.nan
        if fault == "one_nan":
            latents[0, 3] = np.inf
            self.fault = None
        if fault == "huge":
            latents[:] = 3e38
        if fault == "zero":
            latents[:] = 0.0
        if fault == "columns":
            return latents[:, :-1]
        if fault == "rows":
            return latents[:-1]
        if fault == "type":
            return latents.astype(np.int32)
        return latents


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """tests/bundle/tiny_bundle.py as a module."""
    return load_tiny()


@pytest.fixture(scope="package")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="package")
def run(place: Path) -> Path:
    path: Path = load_tiny().train(place)
    return path


@pytest.fixture(scope="package")
def bundle_dir(run: Path, place: Path) -> Path:
    path: Path = load_tiny().make_bundle(run, place / "bundle")
    return path


@pytest.fixture(scope="package")
def other_bundle_dir(run: Path, place: Path) -> Path:
    """The same run with vectors of 8 bits: another bundle, and another index that the first may take."""
    path: Path = load_tiny().make_bundle(run, place / "bundle-int8", precision="int8")
    return path


@pytest.fixture(scope="package")
def sessions(run: Path) -> list[dict[str, Any]]:
    """Rows of the test and valid splits."""
    dataset = Dataset.open(run.parent / "data")
    return [row for split in ("test", "valid") for row in dataset.table(split).to_pylist()]


@pytest.fixture
def faulty(bundle_dir: Path) -> Iterator[Callable[..., tuple[Recommender, FaultyReasoner]]]:
    """(settings of the recommender) -> it and its reasoner, well to begin with."""
    made: list[tuple[Recommender, FaultyReasoner]] = []

    def make(**settings: Any) -> tuple[Recommender, FaultyReasoner]:
        reasoners: list[FaultyReasoner] = []

        def wrapped(bundle: Bundle, config: RecommenderConfig) -> FaultyReasoner:
            reasoners.append(FaultyReasoner(engine_of(bundle, config)))
            return reasoners[-1]

        config = RecommenderConfig.model_validate({"drain_ms": 2_000.0, **settings})
        recommender = load(bundle_dir, config, make_reasoner=wrapped)
        made.append((recommender, reasoners[0]))
        return made[-1]

    yield make
    for recommender, reasoner in made:
        reasoner.release.set()
        recommender.close()
