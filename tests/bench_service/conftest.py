"""A bundle of the tests' tiny run, once for all tests here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

TINY = Path(__file__).parent.parent / "bundle" / "tiny_bundle.py"

pytest.importorskip("fastapi", reason="the [serve] extra")
pytest.importorskip("hdrh", reason="the [bench] extra")
pytest.importorskip("matplotlib", reason="the [bench] extra")


def load_tiny() -> ModuleType:
    if "tiny_bundle" not in sys.modules:
        spec = importlib.util.spec_from_file_location("tiny_bundle", TINY)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["tiny_bundle"] = module
        spec.loader.exec_module(module)
    return sys.modules["tiny_bundle"]


@pytest.fixture(scope="package")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = load_tiny().train(tmp_path_factory.mktemp("tiny"))
    return path


@pytest.fixture(scope="package")
def bundle_dir(tiny_run: Path) -> Path:
    """Its engine is in float32, so that other float32 arithmetic gives its answers nearly to the bit."""
    path: Path = load_tiny().make_bundle(tiny_run, tiny_run.parent / "bundle")
    return path
