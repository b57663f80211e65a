"""An engine directory on a GPU, behind the reasoner's protocol.

The directory's weights are int8, bf16 or fp32 (``rgalign engine build --dtype``); fp32 is also computed as bf16 or fp8.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rgalign.errors import ConfigError, DataError
from rgalign.files import sha256_json
from rgalign.reasoner.engine.artifact import TENSORS, Manifest, load_state_shift, read_manifest
from rgalign.reasoner.engine.cuda.decoder import Decoder, Layer, rotations
from rgalign.reasoner.engine.cuda.matrix import CudaDtype, Matrix, matrix_of
from rgalign.reasoner.engine.cuda.runner import TOKEN_BUCKETS, Floats, Head, Ranked, Runner
from rgalign.reasoner.engine.reasoner import EnginePooling, checked_tokens
from rgalign.reasoner.prefix_tree import TokenIds

COMPUTED: dict[str, tuple[CudaDtype, ...]] = {
    "int8": ("int8",),
    "bf16": ("bf16", "fp8"),
    "fp32": ("fp32", "bf16", "fp8"),
}
MATRICES = ("qkv", "out", "gate_up", "down")


class CudaReasoner:
    """A loaded engine on a GPU. Calls from several threads wait for each other.

    Args:
        decoder: :func:`load_decoder`'s.
        manifest: of its directory.
        dtype: that ``decoder`` computes in.
        tokenizer: only carried, for the prompts' encoder; ``eos_token_id`` is read with pooling ``eos``.
        token_buckets: sizes of the CUDA graphs; the last is the most new tokens of one forward, but a longer prompt is
            computed whole and eagerly. No graphs on a CPU, where the kernels' definitions are computed.
        head: the fused scorer, for :meth:`rank`.
    """

    def __init__(
        self,
        decoder: Decoder,
        manifest: Manifest,
        dtype: CudaDtype,
        *,
        tokenizer: Any = None,
        pooling: EnginePooling = "ltp",
        token_buckets: Sequence[int] = TOKEN_BUCKETS,
        head: Head | None = None,
    ) -> None:
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.max_batch_tokens = token_buckets[-1]
        self.hidden_size = manifest.config.hidden
        self.provenance: dict[str, str] = {
            "model": manifest.model,
            "pooling": pooling,
            "dtype": dtype,
            "engine": manifest.hash,
            "device": "cuda",
        }
        self.runner = Runner(decoder, token_buckets=token_buckets, head=head)
        self._prefix: tuple[int, ...] | None = None
        self._in_use = threading.Lock()

    @property
    def hash(self) -> str:
        return sha256_json(self.provenance)

    def warm_up(self, prefix_ids: Sequence[int] = ()) -> None:
        """Computes the prefix and captures the graphs, so that no request waits for it."""
        with self._in_use:
            self._prepare(self._prefix_of(prefix_ids))

    def embed(
        self,
        token_ids: Sequence[TokenIds],
        *,
        prefix_ids: Sequence[int] = (),
        on_prompts: Callable[[int], None] = lambda count: None,
    ) -> Tensor:
        """[B, D] float32 latent queries, as :meth:`rgalign.reasoner.protocol.Reasoner.embed` says.

        Another ``prefix_ids`` than the last call's is computed first, and the graphs are captured again.
        """
        latents = torch.empty(len(token_ids), self.hidden_size)
        for rows, found in self._forwards(token_ids, prefix_ids, None, None, states=True):
            latents[rows] = found.states
            on_prompts(len(rows))
        return latents

    def rank(
        self, token_ids: Sequence[TokenIds], user: Floats, omega: Floats, *, prefix_ids: Sequence[int] = ()
    ) -> list[Ranked]:
        """The winners of each prompt's session, from the same graph; in the prompts' order.

        Args:
            user: [B, D] user vectors; omega: [B].

        Raises:
            ConfigError: no head. DataError: as :meth:`embed`, or other numbers of rows.
        """
        if self.runner.head is None:
            raise ConfigError(where="CudaReasoner.rank", required="a head", received="none")
        wanted = (len(token_ids), self.runner.head.dim)
        if user.shape != wanted or omega.shape != wanted[:1]:
            received = f"user {user.shape}, omega {omega.shape}"
            raise DataError(
                where="CudaReasoner.rank", required=f"user {wanted} and omega {wanted[:1]}", received=received
            )
        ranked: list[Ranked | None] = [None] * len(token_ids)
        for rows, found in self._forwards(token_ids, prefix_ids, user, omega, states=False):
            assert found.winners is not None
            for place, row in enumerate(rows):
                winners = type(found.winners)(*(each[place : place + 1] for each in found.winners))
                ranked[row] = Ranked(found.states[place : place + 1], winners)
        return cast(list[Ranked], ranked)

    def _forwards(
        self,
        token_ids: Sequence[TokenIds],
        prefix_ids: Sequence[int],
        user: Floats | None,
        omega: Floats | None,
        states: bool,
    ) -> Iterator[tuple[list[int], Ranked]]:
        prefix = self._prefix_of(prefix_ids)
        prompts = [self._prompt(index, ids, len(prefix)) for index, ids in enumerate(token_ids)]
        if not prompts:
            raise DataError(where="CudaReasoner", required="at least one prompt", received="none")
        with self._in_use:
            self._prepare(prefix)
            for rows in packs([len(prompt) for prompt in prompts], self.max_batch_tokens):
                given = (None, None) if user is None or omega is None else (user[rows], omega[rows])
                yield rows, self.runner.run([prompts[row] for row in rows], *given, states=states)

    def _prepare(self, prefix: tuple[int, ...]) -> None:
        if prefix != self._prefix:
            self.runner.set_prefix(np.asarray(prefix, dtype=np.int32))
            self.runner.warm_up()
            self._prefix = prefix

    def _prefix_of(self, prefix_ids: Sequence[int]) -> tuple[int, ...]:
        prefix = tuple(int(token) for token in prefix_ids)
        if prefix:
            checked_tokens("prefix", prefix, self.manifest.config, int(self.pooling == "eos"))
        return prefix

    def _prompt(self, index: int, ids: TokenIds, before: int) -> TokenIds:
        array = checked_tokens(f"prompt {index}", ids, self.manifest.config, before + (self.pooling == "eos"))
        return np.append(array, np.int32(self.tokenizer.eos_token_id)) if self.pooling == "eos" else array


def packs(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Rows of each forward: in the caller's order, at most ``max_tokens`` together, a longer prompt alone."""
    rows: list[int] = []
    size = 0
    for row, length in enumerate(lengths):
        if rows and size + length > max_tokens:
            yield rows
            rows, size = [], 0
        rows.append(row)
        size += length
    if rows:
        yield rows


def load_decoder(
    directory: Path, manifest: Manifest, dtype: CudaDtype, device: torch.device, pooling: EnginePooling = "ltp"
) -> Decoder:
    """The weights on ``device``. ``manifest`` is :func:`read_manifest`'s, so the file is whole.

    Raises:
        ConfigError: a type in which the directory's weights are not computed on a GPU.
        DataError: a tensor is missing or has not the size that the manifest says.
    """
    if dtype not in COMPUTED.get(manifest.dtype, ()):
        required = ", ".join(f"{' or '.join(types)} of an engine of {made}" for made, types in COMPUTED.items())
        raise ConfigError(where=f"{directory} on a GPU", required=required, received=f"{dtype} of {manifest.dtype}")
    config = manifest.config
    try:
        with safe_open(str(directory / TENSORS), framework="pt") as file:
            names = set(file.keys())

            def find(name: str, *shape: int) -> Tensor:
                value: Tensor = file.get_tensor(name)
                if tuple(value.shape) != shape:
                    raise ValueError(f"{name} {tuple(value.shape)}, not {shape}")
                return value.to(device)

            def optional(name: str, *shape: int) -> Tensor | None:
                return find(name, *shape) if name in names else None

            def matrix(name: str, *shape: int) -> Matrix:
                weight, bias = find(f"{name}.weight", *shape), optional(f"{name}.bias", shape[0])
                if manifest.dtype == "int8":
                    return Matrix(weight, find(f"{name}.scale", shape[0]), bias)
                return matrix_of(weight, bias, dtype)

            def layer(start: str) -> Layer:
                queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
                shapes = {
                    "qkv": (queries + 2 * keys, config.hidden),
                    "out": (config.hidden, queries),
                    "gate_up": (2 * config.intermediate, config.hidden),
                    "down": (config.hidden, config.intermediate),
                }
                return Layer(
                    find(start + "input_norm", config.hidden),
                    find(start + "post_norm", config.hidden),
                    optional(start + "query_norm", config.head_dim),
                    optional(start + "key_norm", config.head_dim),
                    *(matrix(start + name, *shapes[name]) for name in MATRICES),
                )

            embed = find("embed", config.vocabulary, config.hidden)
            cosines, sines = rotations(find("inverse_frequencies", config.head_dim // 2), config.max_positions)
            return Decoder(
                config,
                embed,
                find("final_norm", config.hidden),
                cosines * config.rope_scale,
                sines * config.rope_scale,
                tuple(layer(f"layers.{index}.") for index in range(config.num_layers)),
                state_shift=None if pooling != "ltp" else _on(load_state_shift(directory), device),
            )
    except (SafetensorError, ValueError) as error:
        raise DataError(where=f"{directory / TENSORS}", required="an engine's tensors", received=str(error)) from error


def _on(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.float().to(device)


def load_cuda_engine(
    directory: Path | str,
    *,
    dtype: CudaDtype | None = None,
    device: str = "cuda",
    tokenizer: Any = None,
    pooling: EnginePooling = "ltp",
    token_buckets: Sequence[int] = TOKEN_BUCKETS,
) -> CudaReasoner:
    """The reasoner of a directory that ``rgalign engine build`` wrote; every file's hash is checked.

    Args:
        dtype: None: that of the directory.
        device: "cpu" computes the same forward by the kernels' definitions, or in Triton's interpreter.

    Raises:
        DataError: no engine there, or a damaged one. ConfigError: a type that is not computed on a GPU; no GPU.
    """
    path = Path(directory)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(where="load_cuda_engine", required="a CUDA device", received="none")
    manifest = read_manifest(path)
    chosen = cast(CudaDtype, manifest.dtype) if dtype is None else dtype
    decoder = load_decoder(path, manifest, chosen, torch.device(device), pooling)
    return CudaReasoner(decoder, manifest, chosen, tokenizer=tokenizer, pooling=pooling, token_buckets=token_buckets)
