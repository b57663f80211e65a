"""Lower and upper part are the whole model, cached states are its states, and embedding from them changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rgalign.errors import ConfigError, ProvenanceError
from rgalign.reasoner.hf import HFReasoner, Pooling
from rgalign.reasoner.prefix_tree import TokenIds
from rgalign.training.alignment import lower_states
from rgalign.training.alignment.lower_states import LowerStates, StoredStates
from rgalign.training.alignment.split_model import lower_part, put_back, upper_part
from rgalign.training.alignment.upper_reasoner import UpperReasoner

Build = Callable[..., Any]
PAD = 258
TOLERANCE = 2e-5  # float32, four layers; states are of order 1
PREFIX = [7, 8, 9, 10]


def rows(count: int = 9) -> list[TokenIds]:
    rng = np.random.default_rng(1)
    made = [rng.integers(4, 250, rng.integers(3, 20)).astype(np.int32) for _ in range(count)]
    for left, right in zip(made[::3], made[1::3], strict=False):
        right[:2] = left[:2]
    return made


def padded(made: list[TokenIds]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, made))
    ids = torch.full((len(made), width), PAD)
    for number, row in enumerate(made):
        ids[number, : len(row)] = torch.from_numpy(row.astype(np.int64))
    return ids, (ids != PAD).long()


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_upper_of_cached_lower_is_the_model(tiny_model: Build, family: str, tied: bool, tmp_path: Path) -> None:
    model = tiny_model(family, tied=tied)
    states = LowerStates(model, 2, cache=tmp_path)
    upper = upper_part(model, 2, StoredStates(states, PAD))
    ids, mask = padded(rows())
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask)
        got = upper(input_ids=ids, attention_mask=mask)
    real = mask.bool()
    assert expected.logits[real].std() > 0.1
    torch.testing.assert_close(got.logits[real], expected.logits[real], atol=TOLERANCE, rtol=0)
    assert len(upper.get_decoder().layers) == 2
    assert {name.split(".")[1] for name, value in upper.named_parameters() if value.requires_grad} == {"layers", "norm"}


def test_lower_part_shares_its_weights(tiny_model: Build) -> None:
    model = tiny_model()
    part = lower_part(model, 3)
    assert part.get_decoder().layers[0].mlp.up_proj.weight is model.get_decoder().layers[0].mlp.up_proj.weight


def test_trained_layers_go_back_where_they_came_from(tiny_model: Build) -> None:
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    upper = upper_part(model, 2, torch.nn.Identity())
    with torch.no_grad():
        for value in upper.get_decoder().layers[1].parameters():
            value.add_(1)
        upper.get_decoder().norm.weight.mul_(2)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    put_back(upper, model, 2)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    assert changed == {name for name in before if name.startswith("model.layers.3.")} | {"model.norm.weight"}


@pytest.mark.parametrize("num_lower", [0, 4, 9])
def test_a_cut_outside_the_model_is_refused(tiny_model: Build, num_lower: int) -> None:
    with pytest.raises(ConfigError, match="1 to 3 upper layers of 4"):
        lower_part(tiny_model(), num_lower)


def test_states_are_kept_shared_and_resumed(tiny_model: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    monkeypatch.setattr(lower_states, "CHUNK_PROMPTS", 2)
    states = LowerStates(model, 2, cache=tmp_path)
    made = rows()
    compute = LowerStates._compute
    calls: list[int] = []

    def killed(self: Any, chunk: Any, *rest: Any) -> None:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(len(chunk))
        compute(self, chunk, *rest)

    monkeypatch.setattr(LowerStates, "_compute", killed)
    with pytest.raises(KeyboardInterrupt):
        states.fill(made, prefix_ids=PREFIX)
    written = len(states.store)
    monkeypatch.setattr(LowerStates, "_compute", compute)
    again = LowerStates(model, 2, cache=tmp_path)
    assert len(again.store) == written > len(PREFIX)
    distinct = {tuple(row[:end]) for row in (np.append(PREFIX, row) for row in made) for end in range(1, len(row) + 1)}
    again.fill(made, prefix_ids=PREFIX)
    assert len(again.store) == len(distinct) < len(PREFIX) * len(made) + sum(map(len, made))
    assert again.fill(made, prefix_ids=PREFIX) == 0
    whole = [np.append(PREFIX, row).astype(np.int32) for row in made]  # the same addresses without a prefix
    assert again.fill(whole) == 0


def test_states_under_autocast_are_near_and_in_a_store_of_their_own(tiny_model: Build, tmp_path: Path) -> None:
    model, made = tiny_model(), rows()
    exact, autocast = (LowerStates(model, 2, cache=tmp_path, autocast=each) for each in (False, True))
    assert exact.store.path != autocast.store.path
    for states in (exact, autocast):
        states.fill(made, prefix_ids=PREFIX)
    wanted = list(exact.store.known)
    left, right = exact.take(wanted), autocast.take(wanted)
    error = (left - right).norm() / left.norm()
    assert 1e-4 < error < 2e-2  # bfloat16 has 8 bits: 4e-3 a product


def test_another_model_has_another_store(tiny_model: Build, tmp_path: Path) -> None:
    first = LowerStates(tiny_model(seed=0), 2, cache=tmp_path)
    other = LowerStates(tiny_model(seed=1), 2, cache=tmp_path)
    fewer = LowerStates(tiny_model(seed=0), 1, cache=tmp_path)
    assert len({first.store.path, other.store.path, fewer.store.path}) == 3
    changed = tiny_model(seed=0)
    with torch.no_grad():
        changed.get_decoder().layers[3].mlp.up_proj.weight.add_(1)  # above the cut
    assert LowerStates(changed, 2, cache=tmp_path).store.path == first.store.path
    with pytest.raises(ProvenanceError, match="lower_layers"):
        first.store.require(other.store.provenance)


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize("pooling", ["ltp", "mean", "eos"])
def test_reembedding_from_cached_states_equals_the_whole_model(
    tiny_model: Build, family: str, pooling: Pooling, tmp_path: Path
) -> None:
    model = tiny_model(family)
    states = LowerStates(model, 2, cache=tmp_path, max_tokens=32)
    states.fill(rows()[:5], prefix_ids=PREFIX)
    aligned = tiny_model(family)
    with torch.no_grad():
        for value in aligned.get_decoder().layers[2].parameters():
            value.mul_(1.5)
    cached = UpperReasoner(aligned, None, states, pooling=pooling, fingerprint="f", max_batch_tokens=32)
    whole = HFReasoner(aligned, None, pooling=pooling, fingerprint="f", max_batch_tokens=32)
    expected = whole.embed(rows(), prefix_ids=PREFIX)
    assert (expected - HFReasoner(model, None, pooling=pooling).embed(rows(), prefix_ids=PREFIX)).abs().max() > 0.05
    for _ in range(2):
        got = cached.embed(rows(), prefix_ids=PREFIX)
        torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(cached.embed(rows()), whole.embed(rows()), atol=TOLERANCE, rtol=0)
    assert cached.hash == whole.hash
