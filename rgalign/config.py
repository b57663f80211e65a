"""Configuration: frozen models that check themselves once; an unknown key names the nearest right one."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from rgalign.errors import ConfigError, RgalignError
from rgalign.files import write_atomic


class Config(BaseModel):
    """Base of every configuration: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def load_config(cls: type[ConfigT], path: Path | None, overrides: Sequence[str] = ()) -> ConfigT:
    """Reads ``cls`` from YAML, then applies overrides of the form ``a.b=value`` (the value is YAML too).

    Raises:
        ConfigError: no such file, not a mapping, an unknown key (names the nearest one) or an unusable value.
    """
    values = {} if path is None else _read_mapping(path)
    for override in overrides:
        _apply(values, override)
    return parse_config(cls, values, where=str(path or cls.__name__))


def parse_config(
    cls: type[ConfigT], values: Mapping[str, Any], *, where: str, error_type: type[RgalignError] = ConfigError
) -> ConfigT:
    """Validates plain values; the first of pydantic's findings becomes one typed error."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        location = ".".join(str(part) for part in first["loc"])
        inner = first.get("ctx", {}).get("error")
        if isinstance(inner, RgalignError):  # a section's own, which says better what is wrong than all that was given
            raise error_type(
                where=f"{where}, {inner.where}", required=inner.required, received=inner.received
            ) from error
        if first["type"] == "extra_forbidden":
            required = f"a known key ({_hint(str(first['loc'][-1]), _known_keys(cls))})"
            raise error_type(where=where, required=required, received=repr(location)) from error
        received = f"{location} = {first['input']!r}" if first["type"] != "missing" else f"{location} missing"
        raise error_type(where=where, required=first["msg"], received=received) from error


def dump_config(config: BaseModel, path: Path) -> None:
    """As YAML, with every null: one may stand over a preset's value."""
    values = config.model_dump(mode="json")
    write_atomic(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120).encode())


def _read_mapping(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(where=str(path), required="a YAML file", received="no such file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(where=str(path), required="valid YAML", received=str(error)) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(where=str(path), required="a mapping of keys to values", received=type(values).__name__)
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(where="--set", required="key=value", received=repr(override))
    *parents, last = name.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(where="--set", required=f"{parent!r} to be a section", received=repr(override))
    values[last] = yaml.safe_load(text)


def _hint(key: str, known: Mapping[str, str]) -> str:
    if key in known:
        return f"it is {known[key]!r}"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"


def _known_keys(cls: type[BaseModel]) -> dict[str, str]:
    """Every key, also of sections, and where it stands: ``max_rejected`` -> ``dpo.max_rejected``."""
    found: dict[str, str] = {}
    for path, model in _models(cls, "", set()):
        for key in model.model_fields:
            found.setdefault(key, f"{path}{key}")
    return found


def _models(annotation: Any, path: str, seen: set[type]) -> Iterator[tuple[str, type[BaseModel]]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation not in seen:
            seen.add(annotation)
            yield path, annotation
            for name, field in annotation.model_fields.items():
                yield from _models(field.annotation, f"{path}{name}.", seen)
        return
    for argument in get_args(annotation):
        yield from _models(argument, path, seen)
