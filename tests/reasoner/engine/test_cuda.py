"""The GPU's forward on CPU tensors: by the kernels' definitions, and in Triton's interpreter, against transformers."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

pytest.importorskip("triton", reason="Triton is not installed (the extra `gpu`)")

from rgalign.errors import ConfigError, DataError
from rgalign.kernels.on_cpu import interpreted
from rgalign.kernels.score_reference import Projection, project_score_topk_reference, unit
from rgalign.reasoner.engine.build import build_engine
from rgalign.reasoner.engine.cuda.pack import Heads, Parts, Room
from rgalign.reasoner.engine.cuda.reasoner import CudaReasoner, load_cuda_engine, packs
from rgalign.reasoner.engine.cuda.runner import Bucket, Head, _in_one, bucket_ladder
from rgalign.reasoner.engine.reasoner import load_engine
from rgalign.reasoner.hf import HFReasoner

LENGTHS = [1, 2, 7, 16, 17, 40, 65]
PREFIX = list(range(20, 61))
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
needs_kernels = pytest.mark.skipif(
    not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1", reason="needs a GPU or TRITON_INTERPRET=1"
)
# Largest error of a component whose standard deviation is about 1, and least cosine.
TOLERANCE = {"fp32": (1e-4, 0.999999), "bf16": (0.2, 0.9995), "int8": (0.6, 0.995), "fp8": (1.0, 0.98)}


def prompts() -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(1)
    return [rng.integers(4, 256, length).astype(np.int32) for length in LENGTHS]


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 256}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    model = Qwen3ForCausalLM(Qwen3Config(**sizes, **heads, max_position_embeddings=256, eos_token_id=3)).eval()
    for name, parameter in model.named_parameters():
        parameter.data = 1 + torch.randn_like(parameter) / 4 if "norm" in name else 4 * parameter.data
    path = tmp_path_factory.mktemp("qwen3")
    model.save_pretrained(path)
    return model, path


@pytest.fixture(scope="module")
def load(qwen3: tuple[Any, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., CudaReasoner]:
    made: dict[str, Path] = {}

    def find(dtype: str, **options: Any) -> CudaReasoner:
        built = "fp32" if dtype == "fp8" else dtype
        if built not in made:
            made[built] = tmp_path_factory.mktemp("engine") / built
            build_engine(str(qwen3[1]), made[built], built)
        return load_cuda_engine(made[built], dtype=dtype, device=DEVICE, **options)  # type: ignore[arg-type]

    return find


@pytest.fixture(scope="module")
def expected(qwen3: tuple[Any, Path]) -> Tensor:
    states = HFReasoner(qwen3[0], None).embed(prompts(), prefix_ids=PREFIX)
    assert states.std() > 0.5
    return states


def require_close(found: Tensor, expected: Tensor, dtype: str) -> None:
    error, cosine = TOLERANCE[dtype]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=error, rtol=0)
    assert torch.cosine_similarity(found, expected).min() > cosine


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_it_is_transformers_state(dtype: str, load: Callable[..., CudaReasoner], expected: Tensor) -> None:
    reasoner = load(dtype, token_buckets=(64, 128))
    cached = reasoner.embed(prompts(), prefix_ids=PREFIX)
    whole = reasoner.embed([np.concatenate([PREFIX, ids]).astype(np.int32) for ids in prompts()])
    require_close(cached, expected, dtype)
    require_close(whole, expected, dtype)
    assert reasoner.runner.usage.tokens == 2 * sum(LENGTHS) + len(LENGTHS) * len(PREFIX)


@needs_kernels
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_the_kernels_agree_with_their_definitions(
    dtype: str, load: Callable[..., CudaReasoner], expected: Tensor
) -> None:
    """In the interpreter: every kernel of the forward, with padding, a prefix and without."""
    given = prompts()[:4]
    with interpreted():
        found = load(dtype).embed(given, prefix_ids=PREFIX[:9])
    defined = load(dtype).embed(given, prefix_ids=PREFIX[:9])
    whole = load(dtype).embed([np.concatenate([PREFIX[:9], ids]).astype(np.int32) for ids in given])
    assert defined.std() > 0.5
    require_close(found, defined, dtype)
    require_close(found, whole, dtype)


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_the_order_of_a_batch_does_not_matter(dtype: str, load: Callable[..., CudaReasoner]) -> None:
    reasoner, given = load(dtype), prompts()
    order = np.random.default_rng(3).permutation(len(given))
    straight = reasoner.embed(given, prefix_ids=PREFIX)
    turned = reasoner.embed([given[row] for row in order], prefix_ids=PREFIX)
    alone = torch.cat([reasoner.embed([ids], prefix_ids=PREFIX) for ids in given])
    # torch's float products choose another order of sums for another number of rows, and a code may turn over.
    tolerance = {"fp32": 1e-4, "int8": 0.3}[dtype]
    torch.testing.assert_close(turned, straight[order], atol=tolerance, rtol=0)
    torch.testing.assert_close(alone, straight, atol=tolerance, rtol=0)


def test_int8_is_the_cpu_engine_s(load: Callable[..., CudaReasoner], qwen3: tuple[Any, Path], tmp_path: Path) -> None:
    """The same codes and scales; between products the CPU keeps float32 and the GPU bf16."""
    build_engine(str(qwen3[1]), tmp_path / "int8", "int8")
    theirs = load_engine(tmp_path / "int8").embed(prompts(), prefix_ids=PREFIX)
    ours = load("int8").embed(prompts(), prefix_ids=PREFIX)
    assert torch.cosine_similarity(ours, theirs).min() > 0.999


@needs_kernels
def test_a_padded_room_gives_the_same_states(load: Callable[..., CudaReasoner]) -> None:
    """What a graph computes: idle tiles, empty sequences, tokens of no sequence."""
    reasoner = load("fp32")
    decoder, given = reasoner.runner.decoder, prompts()[1:4]
    expected = reasoner.embed(given)
    room = Room(48, 5, decoder.heads)
    assert room.fits(sum(map(len, given)), 3)
    assert not room.fits(48, 6)
    buffer = np.full(room.size, 7, np.int32)  # of an earlier pack
    room.fill(buffer, given, 0)
    with interpreted():
        states = decoder.forward(Parts(*room.parts(torch.from_numpy(buffer).to(DEVICE))))
    assert states.shape == (5, 64)
    torch.testing.assert_close(states[:3].cpu(), expected, atol=1e-4, rtol=0)


class Recorded:
    """In a CUDA graph's place: replaying computes again, from and into the same memory."""

    def __init__(self) -> None:
        self.replay: Callable[[], None] = lambda: None


def test_a_bucket_without_a_gpu(load: Callable[..., CudaReasoner], monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it but the capture: one buffer in, padding, one buffer of winners out, an earlier pack's rests."""
    given = {name: getattr(torch, name) for name in ("zeros", "empty_like")}
    for name, made in given.items():
        monkeypatch.setattr(torch, name, lambda *sizes, made=made, pin_memory=False, **named: made(*sizes, **named))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **options: nullcontext())
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda device: SimpleNamespace(wait_stream=id, synchronize=lambda: None))
    g = torch.Generator().manual_seed(0)
    projection = Projection(torch.randn(16, 64, generator=g), torch.randn(16, generator=g))
    head = Head(projection, unit(torch.randn(30, 16, generator=g)), None, 3)
    reasoner = load("fp32")
    reasoner.embed([np.array([1])], prefix_ids=PREFIX)
    decoder, prefix = reasoner.runner.decoder, reasoner.runner.prefix
    bucket = Bucket(decoder, Room(128, 6, decoder.heads), prefix, head, None)
    parts = Parts(*bucket.room.parts(bucket._given))

    def compute() -> None:
        bucket._states.copy_(decoder.forward(parts, prefix))
        omega, user = bucket._head_inputs(bucket._given)
        bucket._winners.copy_(_in_one(head.score(bucket._states, user, omega)))

    bucket._graph.replay = compute  # type: ignore[method-assign]
    for rows in (slice(3, 6), slice(0, 4), slice(1, 2)):
        own = prompts()[rows]
        user, omega = torch.randn(len(own), 16, generator=g), torch.rand(len(own), generator=g)
        found = bucket.run(own, len(PREFIX), user.numpy(), omega.numpy(), True)
        states = reasoner.embed(own, prefix_ids=PREFIX)
        torch.testing.assert_close(found.states, states, atol=1e-4, rtol=0)
        wanted = project_score_topk_reference(user, states, projection, omega, head.vectors, None, 3)
        assert found.winners is not None
        assert found.winners.rows.dtype == torch.int64
        assert found.winners.rows.tolist() == wanted.rows.tolist()
        for mine, theirs in zip(found.winners[1:], wanted[1:], strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)
    assert bucket.run(prompts()[:1], len(PREFIX), None, None, True).winners is None
    plain = Bucket(decoder, bucket.room, prefix, None, None)
    assert plain.run(prompts()[:2], len(PREFIX), None, None, False).states.shape == (0, 64)
    own = Parts(*plain.room.parts(plain._given))
    torch.testing.assert_close(decoder.forward(own, prefix)[:2], reasoner.embed(prompts()[:2], prefix_ids=PREFIX))


def test_parts_of_a_pack() -> None:
    room = Room(8, 3, Heads(4, 2))
    buffer = np.full(room.size, 9, np.int32)
    room.fill(buffer, [np.array([5, 6, 7], np.int32), np.array([8], np.int32)], 10)
    token_ids, positions, cu_seqlens, last, each, tiles, last_tiles = (part.tolist() for part in room.parts(buffer))
    assert token_ids == [5, 6, 7, 8, 0, 0, 0, 0]
    assert positions[:4] == [10, 11, 12, 10]
    assert cu_seqlens == [0, 3, 4, 4]
    assert last == [2, 3, 0]
    assert each == [0, 1, 2, 3]
    assert [tile for tile in tiles if tile != [-1, -1]] == [[0, 0], [1, 0]]
    assert last_tiles == [[0, 0], [1, 0], [-1, -1]]
    assert list(packs([3, 3, 9, 1, 2], 6)) == [[0, 1], [2], [3, 4]]


@needs_kernels
def test_the_scorer_behind_it(load: Callable[..., CudaReasoner]) -> None:
    g = torch.Generator().manual_seed(0)
    projection = Projection(torch.randn(16, 64, generator=g), torch.randn(16, generator=g))
    head = Head(projection, unit(torch.randn(30, 16, generator=g)), None, 3)
    user, omega = torch.randn(4, 16, generator=g), torch.tensor([0.0, 0.3, 1.0, 0.6])
    reasoner, given = load("fp32", token_buckets=(16, 32)), prompts()[:4]
    with pytest.raises(ConfigError, match="CudaReasoner.rank: required a head; received none"):
        reasoner.rank(given, user.numpy(), omega.numpy())
    reasoner.runner.set_head(head)
    with interpreted():
        ranked = reasoner.rank(given, user.numpy(), omega.numpy(), prefix_ids=PREFIX[:9])
    latents = reasoner.embed(given, prefix_ids=PREFIX[:9])
    wanted = project_score_topk_reference(user, latents, projection, omega, head.vectors, None, 3)
    winners = [each.winners for each in ranked]
    assert len(winners) == 4
    assert [row.rows[0].tolist() for row in winners if row] == wanted.rows.tolist()
    torch.testing.assert_close(torch.cat([row.scores for row in winners if row]), wanted.scores, atol=1e-4, rtol=0)
    with pytest.raises(DataError, match=r"required user \(4, 16\) and omega \(4,\)"):
        reasoner.rank(given, user.numpy()[:, :8], omega.numpy())


def test_the_ladder_pads_the_least() -> None:
    observed = [60] * 10 + [170] * 100 + [340] * 50 + [500]
    assert bucket_ladder(observed, 9) == (64, 192, 384, 512)
    assert bucket_ladder(observed, 3) == (192, 384, 512)
    assert bucket_ladder(observed, 1) == (512,)


def test_what_is_refused(load: Callable[..., CudaReasoner], qwen3: tuple[Any, Path], tmp_path: Path) -> None:
    reasoner = load("fp32")
    with pytest.raises(DataError, match="at least one prompt"):
        reasoner.embed([])
    with pytest.raises(DataError, match="prompt 0: required token ids in 0..255; received 1..256"):
        reasoner.embed([np.array([1, 256])])
    with pytest.raises(DataError, match="at most 256 tokens with the prefix; received 257"):
        reasoner.embed([np.zeros(216, np.int32)], prefix_ids=PREFIX)
    build_engine(str(qwen3[1]), tmp_path / "a12", "int8a12")
    with pytest.raises(ConfigError, match=r"int8 of an engine of int8, .*received int8 of int8a12"):
        load_cuda_engine(tmp_path / "a12", dtype="int8", device=DEVICE)
