"""Nothing of an engine can be changed unseen; and were it seen to, no size that is not its tensors' is used.

The first is what hashes are for: a flipped bit. The second holds for a directory whose hashes all agree with it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rgalign import _C
from rgalign.errors import DataError
from rgalign.files import read_json, sha256_file, sha256_json, write_json
from rgalign.reasoner.engine.artifact import MANIFEST, SEAL, TENSORS, load_model, read_manifest
from rgalign.reasoner.engine.build import Calibration, build_engine
from rgalign.reasoner.engine.reasoner import load_engine

Make = Callable[[str], tuple[Any, Path]]
Key = tuple[str | int, ...]
CONFIG_SIZES = ("num_layers", "hidden", "intermediate", "num_heads", "num_kv_heads", "head_dim", "vocabulary")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, checkpoint: Make) -> Path:
    """Calibrated, so that nothing in its manifest is empty."""
    path = tmp_path_factory.mktemp("whole") / "e"
    prompts = [np.arange(4, 12, dtype=np.int32)] * 2
    named = {"template": "paper", "frame": "f" * 64, "prefix_ids": [4, 5]}
    build_engine(str(checkpoint("qwen3")[1]), path, "int8", Calibration(prompts, 0.5, named))
    return path


@pytest.fixture
def engine(whole: Path, tmp_path: Path) -> Path:
    path = tmp_path / "e"
    path.mkdir()
    for file in whole.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


def seal(engine: Path, values: dict[str, Any] | None = None) -> None:
    """Makes the manifest agree with the directory again."""
    values = values or read_json(engine / MANIFEST)
    values.pop(SEAL, None)
    values["files"] = {name: sha256_file(engine / name) for name in values["files"]}
    write_json(engine / MANIFEST, {**values, SEAL: sha256_json(values)})


# ---- a flipped bit -------------------------------------------------------------------------------------------------


def leaves(value: Any, key: Key = ()) -> Iterator[Key]:
    """Keys of everything in a JSON value that holds nothing else."""
    if isinstance(value, dict | list) and value:
        for name, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(each, (*key, name))
    else:
        yield key


def changed(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return value[:-1] + ("0" if value[-1] != "0" else "1") if isinstance(value, str) else ["x"]


def at(values: Any, key: Key) -> Any:
    for name in key:
        values = values[name]
    return values


def test_every_field_of_the_manifest_counts(engine: Path) -> None:
    before = read_json(engine / MANIFEST)
    keys = list(leaves(before))
    assert {key[0] for key in keys} == set(before)  # none is left out for being empty
    assert len(keys) > 20
    load_engine(engine)
    for key in keys:
        for change in (lambda holder, name: holder.__setitem__(name, changed(holder[name])), lambda h, n: h.pop(n)):
            values = copy.deepcopy(before)
            change(at(values, key[:-1]), key[-1])
            write_json(engine / MANIFEST, values)
            with pytest.raises(DataError, match=r"engine|manifest\.json"):
                read_manifest(engine)
    write_json(engine / MANIFEST, {**before, "more": 1})
    with pytest.raises(DataError, match=r"manifest\.json"):
        read_manifest(engine)


def test_two_values_of_the_manifest_cannot_change_places(engine: Path) -> None:
    values = read_json(engine / MANIFEST)
    config = values["config"]
    assert config["hidden"] != config["intermediate"]
    config["hidden"], config["intermediate"] = config["intermediate"], config["hidden"]
    write_json(engine / MANIFEST, values)
    with pytest.raises(DataError, match="required seal"):
        load_engine(engine)


@pytest.mark.parametrize("name", [MANIFEST, TENSORS, "quantization.csv", "quantization.json"])
def test_no_file_loses_its_end_or_a_bit(name: str, engine: Path) -> None:
    whole = (engine / name).read_bytes()
    text = MANIFEST if name == MANIFEST else None
    rng = np.random.default_rng(0)
    for at_byte in (0, 7, len(whole) // 2, len(whole) - 3, *rng.integers(0, len(whole), 12).tolist()):
        data = bytearray(whole)
        data[at_byte] ^= 1
        if text and same_json(whole, bytes(data)):  # white space
            continue
        (engine / name).write_bytes(data)
        with pytest.raises(DataError):
            load_engine(engine)
    for length in (0, 1, len(whole) // 2, len(whole) - 2):
        (engine / name).write_bytes(whole[:length])
        with pytest.raises(DataError):
            load_engine(engine)
    (engine / name).write_bytes(whole)
    load_engine(engine)


def same_json(left: bytes, right: bytes) -> bool:
    try:
        return bool(json.loads(left) == json.loads(right))
    except ValueError:
        return False


# ---- hashes that agree ---------------------------------------------------------------------------------------------


def test_a_sealed_directory_loads(engine: Path) -> None:
    seal(engine)
    load_engine(engine)


@pytest.mark.parametrize("name", CONFIG_SIZES)
@pytest.mark.parametrize("change", [lambda n: n + 16, lambda n: 2 * n, lambda n: n // 2, lambda n: 0, lambda n: -n])
def test_no_size_but_the_tensors_own_is_used(name: str, change: Callable[[int], int], engine: Path) -> None:
    values = read_json(engine / MANIFEST)
    values["config"][name] = change(values["config"][name])
    seal(engine, values)
    with pytest.raises(DataError, match=r"tensors\.safetensors: required an engine's tensors"):
        load_engine(engine)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 0.0}, "eps: required above 0"),
        ({"eps": float("nan")}, "eps: required above 0"),
        ({"rope_scale": -1.0}, "rope_scale: required above 0"),
        ({"hidden": 1 << 62}, "hidden: required a multiple of 16"),
        ({"hidden": 1 << 70}, "required an engine's tensors"),
        ({"hidden": "64"}, "required an engine's tensors"),
        ({"hidden": 72}, "hidden: required a multiple of 16 up to 16777216; received 72"),
        ({"num_layers": 4}, "layers.3|input_norm"),
        ({"num_heads": 3}, "num_heads: required a multiple of 2"),
    ],
)
def test_what_no_model_has_is_refused(change: dict[str, Any], message: str, engine: Path) -> None:
    values = read_json(engine / MANIFEST)
    values["config"].update(change)
    seal(engine, values)
    with pytest.raises(DataError, match=message):
        load_engine(engine)


def test_weights_of_another_type_are_refused(engine: Path) -> None:
    values = read_json(engine / MANIFEST)
    seal(engine, {**values, "dtype": "fp32"})
    with pytest.raises(DataError, match="required an engine's tensors"):
        load_engine(engine)


def removed(name: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.pop(name)


def replaced(name: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({name: make(tensors[name]).contiguous()})


@pytest.mark.parametrize(
    "change",
    [
        removed("final_norm"),
        removed("layers.1.qkv.scale"),
        removed("layers.2.query_norm"),
        replaced("embed", lambda x: x[:-1]),
        replaced("embed", lambda x: x[:, :32]),
        replaced("inverse_frequencies", lambda x: x[:-8]),
        replaced("layers.0.input_norm", lambda x: x[:-16]),
        replaced("layers.0.key_norm", lambda x: x[:16]),
        replaced("layers.1.down.scale", lambda x: x[:-1]),
        replaced("layers.1.down.weight", lambda x: x.t()),
        replaced("layers.1.down.weight", lambda x: x.flatten()),
        replaced("layers.2.gate_up.weight", lambda x: x[:-16]),
        replaced("layers.2.gate_up.weight", lambda x: x.float()),
        lambda tensors: tensors.update({"layers.0.out.bias": torch.zeros(8)}),
        replaced("state_shift", lambda x: x[:-1]),
    ],
)
def test_no_tensor_of_another_size_is_read(change: Callable[[dict[str, torch.Tensor]], object], engine: Path) -> None:
    tensors = load_file(engine / TENSORS)
    change(tensors)
    save_file(tensors, engine / TENSORS)
    seal(engine)
    with pytest.raises(DataError, match=r"tensors\.safetensors: required an engine's tensors"):
        load_engine(engine)


def test_what_is_no_tensor_file_is_refused(engine: Path) -> None:
    (engine / TENSORS).write_text("not tensors")
    seal(engine)
    with pytest.raises(DataError, match="required an engine's tensors"):
        load_engine(engine)


def test_a_manifest_names_files_of_its_own_directory_only(engine: Path) -> None:
    (engine.parent / "outside").write_text("outside")
    values = read_json(engine / MANIFEST)
    values["files"]["../outside"] = ""
    seal(engine, values)
    with pytest.raises(DataError, match="received no such file"):
        load_engine(engine)


def test_a_session_asks_for_all_layers(engine: Path) -> None:
    model = load_model(engine, read_manifest(engine))
    model.add_layer({name.removeprefix("layers.0."): value for name, value in numpy_tensors(engine).items()})
    with pytest.raises(ValueError, match="layers: required 3; received 4"):
        _C.EngineSession(model, 1)


def numpy_tensors(engine: Path) -> dict[str, Any]:
    tensors = load_file(engine / TENSORS)
    return {name: tensor.numpy() for name, tensor in tensors.items() if tensor.dtype != torch.bfloat16}
