"""IntentIndex: what it refuses, its storage and precisions, filters, changes, and the holder."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rgalign.errors import ConfigError, DataError, ProvenanceError
from rgalign.files import sha256_file, sha256_json
from rgalign.index import IndexHolder, IntentIndex, add_intents, build_index, compare, read_index, write_index
from rgalign.index.precision import PRECISIONS, largest_loss
from rgalign.index.storage import MANIFEST, read_manifest
from rgalign.kernels.score_reference import unit
from rgalign.scoring import score

NUM_INTENTS, DIM = 70, 16
PROVENANCE = {"intent_tower": "a" * 64, "text_encoder": "b" * 64, "catalogue": "c" * 64}


def vectors(seed: int = 0, count: int = NUM_INTENTS, dim: int = DIM) -> Tensor:
    return unit(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)))


def ids(count: int = NUM_INTENTS) -> list[str]:
    return [f"i{number:03d}" for number in range(count)]


def index(precision: str = "float32", seed: int = 0) -> IntentIndex:
    return build_index(ids(), [f"Título {n}" for n in ids()], vectors(seed), PROVENANCE, precision)  # type: ignore[arg-type]


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return write_index(index(), tmp_path / "index")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_index_comes_back_from_disk_bit_for_bit(precision: str, tmp_path: Path) -> None:
    written = index(precision)
    found = read_index(write_index(written, tmp_path / "index"), require={"intent_tower": "a" * 64})
    assert (found.ids, found.titles, found.provenance) == (written.ids, written.titles, written.provenance)
    assert found.vectors.dtype == written.vectors.dtype
    assert torch.equal(found.vectors, written.vectors)
    assert torch.equal(found.decoded, written.decoded)
    assert sorted(path.suffix for path in (tmp_path / "index").iterdir()) == ["", ".json", ".safetensors"]


@pytest.mark.parametrize(
    ("precision", "limit"), [("float32", 1e-14), ("float16", 1e-7), ("bfloat16", 1e-5), ("int8", 1e-4)]
)
def test_what_a_precision_costs(precision: str, limit: float) -> None:
    kept = index(precision).decoded
    assert (kept.norm(dim=1) - 1).abs().max() < (5e-3 if precision == "bfloat16" else 1e-3)
    assert largest_loss(vectors(), kept) < limit
    if precision != "float32":
        assert largest_loss(vectors(), kept) > 0


def test_rows_stand_in_id_order_whatever_order_they_came_in() -> None:
    order = torch.randperm(NUM_INTENTS, generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = build_index([ids()[n] for n in order], [ids()[n] for n in order], vectors()[order], PROVENANCE)
    assert shuffled.ids == tuple(ids())
    assert torch.equal(shuffled.vectors, vectors())


def with_row(value: float | Tensor) -> Tensor:
    changed = vectors()
    changed[5] = value
    return changed


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (with_row(float("nan")), "row 5: required finite values; received NaN"),
        (with_row(torch.tensor([float("inf")] + [0.0] * (DIM - 1))), "row 5: required finite values"),
        (with_row(0.0), "row 5: required a unit vector .*received norm 0"),
        (with_row(vectors()[5] * 1.001), "row 5: required a unit vector .*received norm 1.001"),
        (vectors()[:-1], f"required {NUM_INTENTS} rows"),
        (torch.zeros(NUM_INTENTS), f"required {NUM_INTENTS} rows"),
    ],
)
def test_vectors_that_cannot_be_scored_are_refused(rows: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_index(ids(), ids(), rows, PROVENANCE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: IntentIndex(["a", "a"], ["", ""], vectors(count=2), None, {}), "row 1: .*unique.*received 'a'"),
        (lambda i: IntentIndex(["b", "a"], ["", ""], vectors(count=2), None, {}), "row 1: .*ascending order"),
        (
            lambda i: IntentIndex(["", "a"], ["", ""], vectors(count=2), None, {}),
            "row 0: required ids that are not empty",
        ),
        (lambda i: IntentIndex([], [], vectors(count=0), None, {}), "at least one intent"),
        (lambda i: IntentIndex(i.ids, i.titles, i.vectors.double(), None, {}), "received torch.float64"),
        (lambda i: IntentIndex(i.ids, i.titles, i.vectors.T, None, {}), "contiguous"),
        (lambda i: IntentIndex(i.ids, i.titles, i.vectors, torch.ones(NUM_INTENTS), {}), "only with them"),
        (lambda i: IntentIndex(i.ids, i.titles, i.vectors, torch.ones(3), {}), "only with them"),
        (lambda i: IntentIndex(i.ids, i.titles, torch.ones(NUM_INTENTS, DIM, dtype=torch.int8), None, {}), "scales"),
    ],
)
def test_an_index_that_contradicts_itself_is_refused(change: Callable[[IntentIndex], object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        change(index())


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="int4"):
        index("int4")


def rewrite(path: Path, **changes: object) -> None:
    """A manifest with other entries that is right in itself: only what it says of the tensors is wrong."""
    values = json.loads((path / MANIFEST).read_text())
    values |= changes
    values.pop("manifest_sha256")
    values["manifest_sha256"] = sha256_json(values)
    (path / MANIFEST).write_text(json.dumps(values, separators=(",", ":"), sort_keys=True) + "\n")


def tensors(path: Path) -> Path:
    return path / read_manifest(path).file


def replaced_tensors(path: Path) -> None:
    other = write_index(index(seed=1), path.with_name("other"))
    tensors(path).write_bytes(tensors(other).read_bytes())


def damaged(path: Path) -> None:
    data = bytearray(tensors(path).read_bytes())
    data[len(data) // 2] ^= 1
    tensors(path).write_bytes(data)


def forged_zero_row(path: Path) -> None:
    """A file that is not the manifest's in any hash, but a well-formed one with a zero row."""
    file = tensors(path)
    data = file.read_bytes()
    row = vectors()[5].numpy().tobytes()
    assert data.count(row) == 1
    file.write_bytes(data.replace(row, bytes(len(row))))
    rewrite(path, sha256=sha256_file(file))


CORRUPTIONS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda p: (p / MANIFEST).unlink(), "required the manifest"),
    "an empty manifest": (lambda p: (p / MANIFEST).write_text(""), "required JSON"),
    "a manifest with a key twice": (
        lambda p: (p / MANIFEST).write_text((p / MANIFEST).read_text().replace("{", '{"dim": 3,', 1)),
        "the bytes that were written",
    ),
    "a manifest of a later format": (lambda p: rewrite(p, format=2), "less than or equal to 1"),
    "an unknown key": (lambda p: rewrite(p, __class__="os.system"), "a known key"),
    "a path out of the directory": (lambda p: rewrite(p, file="../../etc/passwd"), "pattern"),
    "no tensors": (lambda p: tensors(p).unlink(), "no such file"),
    "truncated tensors": (lambda p: os.truncate(tensors(p), 4000), "received 4000 bytes"),
    "a flipped bit": (damaged, "required .* of sha256"),
    "another index's tensors": (replaced_tensors, "required .* of sha256"),
    "a zero row with the right hashes": (forged_zero_row, "row 5: required a unit vector"),
    "a wrong dtype": (lambda p: rewrite(p, precision="float16"), "vectors: torch.float16"),
    "another number of intents": (lambda p: rewrite(p, num_intents=69), "of shape .69"),
    "a symbolic link": (lambda p: tensors(p).rename(p / "x") and tensors(p).symlink_to(p / "x"), "no such file"),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_damaged_index_is_refused(name: str, stored: Path) -> None:
    corrupt, message = CORRUPTIONS[name]
    assert len(read_index(stored)) == NUM_INTENTS
    corrupt(stored)
    with pytest.raises(DataError, match=message):
        read_index(stored)


def test_an_index_of_another_tower_is_refused(stored: Path) -> None:
    with pytest.raises(ProvenanceError, match="required intent_tower dddd.*received aaaa"):
        read_index(stored, require={"intent_tower": "d" * 64})
    with pytest.raises(ProvenanceError, match="received none"):
        read_index(stored, require={"reasoner": "d" * 64})


def test_a_second_writer_is_refused(stored: Path) -> None:
    import fcntl

    with open(stored / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="no other writer"):
            write_index(index(), stored)
    assert read_index(write_index(index(seed=1), stored)).vectors.equal(vectors(1))


KILL_EACH_STEP = """
import json, os, signal, sys
from pathlib import Path
sys.path.insert(0, TESTS)
import torch
torch.set_num_threads(1)
import test_index
path = Path(sys.argv[1])
former, following = test_index.index(), test_index.index(seed=1)
states, killed, step, finished = [], 0, 0, False
while not finished:
    step += 1
    test_index.write_index(former, path)
    child = os.fork()
    if child == 0:
        calls = 0
        def counted(real):
            def call(*args, **kwargs):
                global calls
                calls += 1
                if calls == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)
            return call
        for name in ("replace", "fsync", "open", "unlink"):
            setattr(os, name, counted(getattr(os, name)))
        test_index.write_index(following, path)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    finished = not os.WIFSIGNALED(status)
    killed += not finished
    found = test_index.read_index(path).vectors
    states.append("next" if found.equal(following.vectors) else "former" if found.equal(former.vectors) else "torn")
print(json.dumps(dict(killed=killed, states=states)))
"""


def test_a_writer_killed_at_any_step_leaves_the_former_index_or_the_next(tmp_path: Path) -> None:
    # One process that forks a child a step: importing torch each time would take the time of the whole suite.
    path = tmp_path / "index"
    program = KILL_EACH_STEP.replace("TESTS", repr(str(Path(__file__).parent)))
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["killed"] >= 8
    assert set(found["states"]) == {"former", "next"}
    assert read_index(path).vectors.equal(vectors(1))
    assert len([file for file in path.iterdir() if file.suffix == ".safetensors"]) == 1


def test_filters_are_bitsets_over_the_rows() -> None:
    some = index().allow(["i000", "i063", "i064", "i069"])
    assert some.dtype == np.uint64
    assert some.tolist() == [1 | 1 << 63, 1 | 1 << 5]
    assert (index().deny(["i000"]) & some).tolist() == [1 << 63, 1 | 1 << 5]
    with pytest.raises(DataError, match="required ids of the index; received 'i070'"):
        index().allow(["i070"])


def test_changes_between_two_indexes() -> None:
    former = index()
    moved = vectors()
    moved[3] = unit(moved[3] + 0.3 * moved[4])
    moved[9] = -moved[9]
    titles = [*former.titles[:-1], "renamed"]
    keep = [row for row in range(NUM_INTENTS) if row != 1]
    other = build_index(
        ["i500", *(ids()[row] for row in keep)],
        ["further", *(titles[row] for row in keep)],
        torch.cat([vectors(2)[:1], moved[keep]]),
        {**PROVENANCE, "catalogue": "e" * 64},
    )
    changes = compare(former, other)
    assert (changes.added, changes.removed) == (("i500",), ("i001",))
    assert changes.retitled == {"i069": ("Título i069", "renamed")}
    assert list(changes.moved) == ["i009", "i003"]
    assert changes.moved["i009"] == pytest.approx(-1)
    assert changes.provenance == {"catalogue": ("c" * 64, "e" * 64)}
    assert not compare(former, former)
    assert not compare(former, index("int8")).moved
    with pytest.raises(DataError, match="vectors of one width"):
        compare(former, build_index(["a"], ["a"], vectors(count=1, dim=4), {}))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_intents_are_added_and_the_others_stay_bit_for_bit(precision: str) -> None:
    former = index(precision)
    further = vectors(7, count=2)
    added = add_intents(former, ["i0005", "z"], ["new", "last"], further, {**PROVENANCE, "catalogue": "f" * 64})
    assert list(added.ids) == sorted([*former.ids, "i0005", "z"])
    assert len(added) == NUM_INTENTS + 2
    assert added.vectors.dtype == former.vectors.dtype
    kept = [added.rows[intent_id] for intent_id in former.ids]
    assert torch.equal(added.decoded[kept], former.decoded)
    answer = score(None, further, None, added, 1.0, 1)
    assert answer.ids == [["i0005"], ["z"]]
    assert added.provenance["catalogue"] not in (former.provenance["catalogue"], "f" * 64)
    with pytest.raises(DataError, match="not in the index; received 'i001'"):
        add_intents(former, ["i001"], ["x"], further[:1], PROVENANCE)
    with pytest.raises(ProvenanceError, match="intent_tower"):
        add_intents(former, ["y"], ["x"], further[:1], {"intent_tower": "0" * 64})


def test_a_swap_is_whole_and_an_unfit_index_leaves_the_former(tmp_path: Path) -> None:
    holder = IndexHolder(index())
    first = holder.current
    assert first.generation == 1
    assert holder.swap(index(seed=1)) == 2
    assert first.vectors.equal(vectors()), "a reader that holds the former index keeps it"
    assert holder.swap_from(write_index(index(seed=2), tmp_path / "index")) == 3
    third = holder.current
    narrow = build_index(["a"], ["a"], vectors(count=1, dim=4), PROVENANCE)
    with pytest.raises(DataError, match="vectors of 16 values"):
        holder.swap(narrow)
    with pytest.raises(ProvenanceError, match="intent_tower"):
        holder.swap(build_index(ids(), ids(), vectors(), {"intent_tower": "0" * 64}))
    with pytest.raises(DataError, match="manifest"):
        holder.swap_from(tmp_path / "none")
    assert holder.current is third
    assert third.generation == 3


def test_the_same_vectors_are_packed_once() -> None:
    one = index()
    assert one.packed() is one.published(5).packed()
