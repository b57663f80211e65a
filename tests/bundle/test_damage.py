"""Kinds of damage, each refused with a typed error; those below the hashes too, in a bundle that was sealed again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rgalign.bench.soak import summarise
from rgalign.bundle import read_bundle
from rgalign.bundle.manifest import MANIFEST, describe_files, manifest_bytes, sealed
from rgalign.errors import DataError, ProvenanceError
from rgalign.recommender import Recommender, RecommenderConfig, load

Damage = Callable[[Path], object]
Values = dict[str, Any]
REFUSED: list[str] = []


def index_tensors(path: Path) -> str:
    return next((path / "index").glob("*.safetensors")).relative_to(path).as_posix()


FILES = {
    "manifest": lambda path: MANIFEST,
    "schema": lambda path: "schema.yaml",
    "catalogue": lambda path: "intents.parquet",
    "index manifest": lambda path: "index/manifest.json",
    "index vectors": index_tensors,
    "user tower": lambda path: "user_tower.safetensors",
    "query tower": lambda path: "query_tower.safetensors",
    "engine manifest": lambda path: "engine/manifest.json",
    "engine tensors": lambda path: "engine/tensors.safetensors",
    "tokenizer": lambda path: "tokenizer.json",
}


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def longer(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b" ")


def linked(file: Path) -> None:
    elsewhere = file.with_name("elsewhere")
    os.rename(file, elsewhere)
    os.symlink(elsewhere, file)


WAYS: dict[str, Damage] = {
    "flipped": flipped,
    "cut": cut,
    "longer": longer,
    "empty": lambda file: file.write_bytes(b""),
    "missing": lambda file: file.unlink(),
    "linked": linked,
}


@pytest.fixture
def copy(bundle_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_dir, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def serving(bundle_dir: Path) -> Iterator[Recommender]:
    with load(bundle_dir, RecommenderConfig(deadline_ms=30_000.0)) as recommender:
        yield recommender


def require_refused(path: Path, serving: Recommender, message: str | None = None) -> None:
    """By reading it, and by a recommender that serves and goes on with what it has."""
    before, expected = serving.health(), serving.recommend({"page": "orders"}).intents
    for refusing in (read_bundle, serving.swap_bundle):
        with pytest.raises((DataError, ProvenanceError), match=message):
            refusing(path)
    after = serving.health()
    assert (after.bundle, after.generation, after.ready) == (before.bundle, before.generation, True)
    assert serving.recommend({"page": "orders"}).intents == expected
    REFUSED.append(path.name)
    summarise("bad_bundles", kinds=len(REFUSED), refused=len(REFUSED), changed=0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file(file: str, way: str, copy: Path, serving: Recommender) -> None:
    WAYS[way](copy / FILES[file](copy))
    require_refused(copy, serving)


def seal(path: Path, change: Callable[[Values], object] = lambda values: None) -> None:
    """Makes the manifest fit what the files are now, and then another one."""
    values = json.loads((path / MANIFEST).read_bytes())
    values["files"] = {name: file.model_dump(mode="json") for name, file in describe_files(path).items()}
    change(values)
    (path / MANIFEST).write_bytes(manifest_bytes(sealed(values)))


def tensors(file: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(path: Path) -> None:
        loaded = load_file(path / file)
        change(loaded)
        save_file(loaded, path / file)
        seal(path)

    return damage


def manifest(change: Callable[[Values], object]) -> Damage:
    return lambda path: seal(path, change)


def put(name: str, value: Any) -> Damage:
    return manifest(lambda values: values.update({name: value}))


def put_reasoner(name: str, value: Any) -> Damage:
    return manifest(lambda values: values["reasoner"].update({name: value}))


def first(loaded: dict[str, torch.Tensor]) -> str:
    return min(loaded)


OTHER = "0" * 64
SEALED: dict[str, tuple[Damage, str]] = {
    "another format": (put("format", 2), "format"),
    "an unknown key": (put("more", 1), "more"),
    "no seal of its own": (lambda path: (path / MANIFEST).write_bytes(b"{}\n"), "other bytes|seal"),
    "a list": (lambda path: (path / MANIFEST).write_bytes(b"[]\n"), "other bytes"),
    "omega 0": (put("omega", 0.0), "omega"),
    "omega 2": (put("omega", 2.0), "omega"),
    "another dim": (put("dim", 9), "vectors of 9"),
    "another schema": (put("schema_hash", OTHER), "schema 000"),
    "another catalogue": (put("catalogue", OTHER), "catalogue 000"),
    "another intent tower": (
        manifest(lambda values: values["index"].update(intent_tower=OTHER)),
        "intent_tower 000",
    ),
    "no statistics": (put("statistics", {}), "not of 'balance'"),
    "a deviation of 0": (
        manifest(lambda values: values["statistics"]["balance"].update(std=0.0)),
        "std",
    ),
    "a negative scale": (manifest(lambda values: values["full"].update(scale=-1.0)), "scale"),
    "a threshold of 2": (manifest(lambda values: values["user_only"].update(threshold=2.0)), "threshold"),
    "no calibration": (put("full", None), "a calibration"),
    "another ranker's sizes": (manifest(lambda values: values["model"]["user"].update(history_dim=8)), "shape"),
    "another engine": (put_reasoner("engine", OTHER), "engine 000"),
    "another engine dtype": (put_reasoner("dtype", "int8"), "an engine of int8"),
    "another state size": (put_reasoner("hidden_size", 64), "shape"),
    "another template": (
        manifest(lambda values: values["reasoner"]["template"].update(before="Facts: ")),
        "prompts",
    ),
    "no such chat format": (put_reasoner("chat_format", "morse"), "chat_format"),
    "no room for prompts": (put_reasoner("max_tokens", 1), "max_tokens"),
    "personal features too": (put_reasoner("include_pii", True), "prompts"),
    "no such pooling": (put_reasoner("pooling", "mean"), "pooling"),
    "eos without its token": (
        manifest(lambda values: values["reasoner"].update(pooling="eos", eos_token_id=None)),
        "eos_token_id",
    ),
    "NaN in the user tower": (
        tensors("user_tower.safetensors", lambda t: t[first(t)].fill_(float("nan"))),
        "finite",
    ),
    "a tensor of the user tower missing": (tensors("user_tower.safetensors", lambda t: t.pop(first(t))), "shape"),
    "one too many": (tensors("user_tower.safetensors", lambda t: t.update({"tower.more": torch.ones(1)})), "more"),
    "a table that nobody reads": (
        tensors("user_tower.safetensors", lambda t: t.update({"intent_table": torch.ones(9, 4)})),
        "an intent table",
    ),
    "half precision": (
        tensors("query_tower.safetensors", lambda t: t.update(weight=t["weight"].half())),
        "float32",
    ),
    "infinity in the query tower": (
        tensors("query_tower.safetensors", lambda t: t["bias"].fill_(float("inf"))),
        "finite",
    ),
    "a query tower of other states": (
        tensors("query_tower.safetensors", lambda t: t.update(weight=t["weight"][:, :-1].contiguous())),
        "shape",
    ),
    "no pickle is read": (
        lambda path: (torch.save({}, path / "user_tower.safetensors"), seal(path)),
        "safetensors",
    ),
    "a tokenizer of nonsense": (
        lambda path: ((path / "tokenizer.json").write_text("{}"), seal(path)),
        "tokenizer",
    ),
    "a file that no one named": (lambda path: (path / "more.py").touch(), "does not name"),
    "an engine damaged below its own manifest": (
        lambda path: (flipped(path / "engine" / "tensors.safetensors"), seal(path)),
        "sha256",
    ),
    "an index damaged below its own manifest": (
        lambda path: (flipped(path / index_tensors(path)), seal(path)),
        "index",
    ),
}


@pytest.mark.parametrize("kind", SEALED)
def test_damage_below_the_hashes(kind: str, copy: Path, serving: Recommender) -> None:
    damage, message = SEALED[kind]
    damage(copy)
    require_refused(copy, serving, message)


def test_sealing_again_is_no_damage(copy: Path, bundle_dir: Path) -> None:
    seal(copy)
    assert read_bundle(copy).hash == read_bundle(bundle_dir).hash


def test_forty_kinds() -> None:
    assert len(FILES) * len(WAYS) + len(SEALED) >= 40
