"""Contexts to begin with: lines of a JSONL file, sessions of a dataset, the simulator's; and one that was typed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from rgalign.bundle import Bundle
from rgalign.data.dataset import Dataset
from rgalign.errors import DataError
from rgalign.recommender.context import ROW_COLUMNS, ContextReader

Context = dict[str, Any]

SIMULATOR = "simulator"
SIMULATED_SESSIONS = 600  # over all its weeks
MAX_CHARS = 64 << 10  # of one context


def read_contexts(source: str, bundle: Bundle, most: int) -> list[Context]:
    """The first ``most`` contexts of a JSONL file or of a dataset's valid split; or of the word ``simulator``.

    Raises:
        DataError: no such source, or a context that the bundle's schema refuses (the first, with its line).
    """
    path = Path(source)
    if path.is_file():
        contexts = _lines(path, most)
    elif path.is_dir():
        contexts = _sessions(path, most)
    elif source == SIMULATOR:
        contexts = _simulated(bundle, most)
    else:
        required = f"a JSONL file, a dataset directory or {SIMULATOR!r}"
        raise DataError(where=f"contexts {source}", required=required, received="no such path")
    reader = ContextReader(bundle.schema)
    for number, context in enumerate(contexts, start=1):
        try:
            reader.read(context)
        except DataError as error:
            where = f"{source}, context {number}: {error.where}"
            raise DataError(where=where, required=error.required, received=error.received) from error
    if not contexts:
        raise DataError(where=f"contexts {source}", required="at least one context", received="none")
    return contexts


def parse_context(text: str) -> Context:
    """The JSON object that was typed.

    Raises:
        DataError: not JSON, said with line and column; no object; a key twice; too long.
    """
    if len(text) > MAX_CHARS:
        raise DataError(where="context", required=f"at most {MAX_CHARS} characters", received=str(len(text)))
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_not_json)
    except json.JSONDecodeError as error:
        where = f"context, line {error.lineno} column {error.colno}"
        raise DataError(where=where, required="JSON", received=error.msg) from error
    except DataError:
        raise
    except (RecursionError, ValueError) as error:  # nested without end, an integer of thousands of digits
        raise DataError(where="context", required="JSON", received=type(error).__name__) from error
    if not isinstance(value, dict):
        raise DataError(where="context", required="a JSON object", received=type(value).__name__)
    return value


def written(context: Mapping[str, Any]) -> str:
    """The context as JSON, one feature a line."""
    lines = [f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in context.items()]
    return "{\n" + ",\n".join(lines) + "\n}" if lines else "{}"


def _lines(path: Path, most: int) -> list[Context]:
    contexts = []
    try:
        with open(path, encoding="utf-8") as stream:
            for number, line in enumerate(islice(stream, most), start=1):
                try:
                    contexts.append(_features(parse_context(line.rstrip("\n"))))
                except DataError as error:
                    where = f"{path}, line {number}: {error.where}"
                    raise DataError(where=where, required=error.required, received=error.received) from error
    except UnicodeDecodeError as error:
        raise DataError(where=str(path), required="UTF-8 text", received=error.reason) from error
    return contexts


def _sessions(path: Path, most: int) -> list[Context]:
    # Of the valid split: the test split is for evaluation alone.
    return [_features(row) for row in Dataset.open(path).table("valid").slice(0, most).to_pylist()]


def _simulated(bundle: Bundle, most: int) -> list[Context]:
    from rgalign.data.simulator import SimulatorConfig, simulate
    from rgalign.data.simulator.features import build_schema

    required = "a bundle of simulated sessions (for another seed: the dataset's directory)"
    if build_schema().hash != bundle.schema.hash:
        raise DataError(where="contexts simulator", required=required, received=f"schema {bundle.schema.name!r}")
    config = SimulatorConfig(num_sessions=SIMULATED_SESSIONS, num_intents=len(bundle.catalog.ids))
    with TemporaryDirectory() as temporary:
        simulate(config, Path(temporary) / "data", workers=1, progress=False)
        if Dataset.open(Path(temporary) / "data").catalog.hash != bundle.catalog.hash:
            raise DataError(where="contexts simulator", required=required, received="another catalogue")
        return _sessions(Path(temporary) / "data", most)


def _features(row: Mapping[str, Any]) -> Context:
    return {name: value for name, value in row.items() if name not in ROW_COLUMNS and value is not None}


def _unique(pairs: list[tuple[str, Any]]) -> Context:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise DataError(where="context", required="each feature once", received=f"{twice[:60]!r} twice")


def _not_json(constant: str) -> NoReturn:
    raise DataError(where="context", required="JSON", received=constant)
