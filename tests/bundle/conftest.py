"""One run and its bundle for all tests here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

TINY = Path(__file__).parent / "tiny_bundle.py"


def load_tiny() -> ModuleType:
    if "tiny_bundle" not in sys.modules:
        spec = importlib.util.spec_from_file_location("tiny_bundle", TINY)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["tiny_bundle"] = module
        spec.loader.exec_module(module)
    return sys.modules["tiny_bundle"]


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """tiny_bundle.py as a module."""
    return load_tiny()


@pytest.fixture(scope="package")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = load_tiny().train(tmp_path_factory.mktemp("tiny"))
    return path


@pytest.fixture(scope="package")
def bundle_dir(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = load_tiny().make_bundle(run, tmp_path_factory.mktemp("bundles") / "bundle")
    return path
