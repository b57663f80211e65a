"""Tables over the closed loop's tiny dataset and random Qwen3, and the teachers' chat server: fixtures of theirs."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def _fixtures(folder: str) -> Any:
    path = Path(__file__).parents[1] / folder / "conftest.py"
    spec = importlib.util.spec_from_file_location(f"{folder}_fixtures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


loop_values = _fixtures("loop").loop_values
serve, replies = (getattr(_fixtures("teachers"), name) for name in ("serve", "replies"))


@pytest.fixture(scope="session")
def table_values(loop_values: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Values of a TablesConfig, changed as those of the loop; V2 keeps sessions, DPO has its own rate."""

    def values(**changes: Any) -> dict[str, Any]:
        plain = loop_values(select={"strategy": "V2"})
        plain |= {"alignment_seeds": [0, 1], "seeds": [0], "dpo": {"learning_rate": 1e-4}}
        plain["stage1"] = {**plain["stage1"], "epochs": 3}
        plain["stage3"] = {"epochs": 1}
        for key, value in changes.items():
            plain[key] = {**plain.get(key, {}), **value} if isinstance(value, dict) else value
        return plain

    return values
