"""What requests ask with: contexts of real sessions, or drawn from a bundle's schema where there are none."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rgalign.bundle import Bundle
from rgalign.data.dataset import Dataset
from rgalign.errors import DataError
from rgalign.schema import CategoricalFeature, FeatureSchema, GroupFeature, NumericalFeature, SequenceFeature

Moments = Mapping[str, tuple[float, float]]
MISSING = 0.1  # share of single values that a drawn context does not have
AGE_HOURS = 72.0  # mean age of a drawn step


def read_contexts(path: Path) -> list[dict[str, Any]]:
    """A JSON object a line.

    Raises:
        DataError: no file, none in it, or a line that is no object.
    """
    if not path.is_file():
        required = f"contexts: python -m rgalign.bench.loadgen contexts DATASET -o {path} writes them"
        raise DataError(where=str(path), required=required, received="no such file")
    contexts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise DataError(where=f"{path}:{number}", required="a JSON object", received=line[:40])
        contexts.append(value)
    if not contexts:
        raise DataError(where=str(path), required="at least one context", received="an empty file")
    return contexts


def dataset_contexts(dataset: Path, count: int) -> list[dict[str, Any]]:
    """The features of the first ``count`` validation sessions, as plain JSON values; what is missing is left out."""
    data = Dataset.open(dataset)
    rows = data.table("valid", list(data.schema.columns)).slice(0, count).to_pylist()
    return [{name: value for name, value in each.items() if value is not None} for each in rows]


def write_contexts(contexts: list[dict[str, Any]], out: Path) -> None:
    text = "".join(json.dumps(context, allow_nan=False, ensure_ascii=False) + "\n" for context in contexts)
    out.write_text(text, encoding="utf-8")


def drawn_contexts(bundle: Bundle, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Contexts that the bundle's schema allows: known values at random, numbers about the training sessions' mean.

    Lengths are uniform up to each feature's own limit, so prompts are longer than most users' are.
    """
    rng = np.random.default_rng(seed)
    moments = bundle.encoder.stats.moments
    return [_drawn(bundle.schema, moments, rng) for _ in range(count)]


def _drawn(schema: FeatureSchema, moments: Moments, rng: np.random.Generator) -> dict[str, Any]:
    context: dict[str, Any] = {}
    for feature in schema.features:
        if isinstance(feature, SequenceFeature):
            length = int(rng.integers(feature.max_length + 1))
            context[feature.name] = [_value(schema, feature.vocabulary, rng) for _ in range(length)]
        elif isinstance(feature, GroupFeature):
            context |= _steps(feature, schema, moments, rng)
        elif rng.random() >= MISSING:
            context[feature.name] = _single(feature, schema, moments, rng)
    return context


def _single(
    feature: CategoricalFeature | NumericalFeature, schema: FeatureSchema, moments: Moments, rng: np.random.Generator
) -> str | float:
    if isinstance(feature, CategoricalFeature):
        return _value(schema, feature.vocabulary, rng)
    number = _number(feature.name, feature.transform, moments, rng)
    lowest = -math.inf if feature.minimum is None else feature.minimum
    highest = math.inf if feature.maximum is None else feature.maximum
    return float(np.clip(number, lowest, highest))


def _steps(group: GroupFeature, schema: FeatureSchema, moments: Moments, rng: np.random.Generator) -> dict[str, Any]:
    length = int(rng.integers(group.max_length + 1))
    steps: dict[str, Any] = {}
    for member in group.members:
        if member.kind == "categorical":
            steps[member.name] = [_value(schema, member.vocabulary, rng) for _ in range(length)]
        elif member.name == group.age:
            mean = min(AGE_HOURS, (group.window_hours or math.inf) / 2)
            steps[member.name] = sorted(round(float(hours), 2) for hours in rng.exponential(mean, length))
        else:
            steps[member.name] = [_number(member.name, member.transform, moments, rng) for _ in range(length)]
    return steps


def _value(schema: FeatureSchema, vocabulary: str, rng: np.random.Generator) -> str:
    known = list(schema.vocabulary(vocabulary).names)
    return known[int(rng.integers(len(known)))] if known else ""


def _number(name: str, transform: str, moments: Moments, rng: np.random.Generator) -> float:
    mean, std = moments[name]
    value = float(rng.normal(mean, std))
    return round(math.expm1(min(max(value, 0.0), 20.0)) if transform == "log1p" else value, 3)
