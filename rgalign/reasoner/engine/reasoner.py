"""An engine directory as a reasoner: token ids to latent queries, as :class:`rgalign.reasoner.hf.HFReasoner` does.

Prompts that begin alike are computed once, through the same prefix trees; a prompt's vector has the same bits whatever
is computed beside it, with one thread or several.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from rgalign import _C
from rgalign.errors import ConfigError, DataError
from rgalign.files import sha256_json
from rgalign.reasoner.engine.artifact import Manifest, load_model, load_state_shift, read_manifest
from rgalign.reasoner.engine.decoder_config import DecoderConfig
from rgalign.reasoner.prefix_tree import PrefixTree, TokenIds, prefix_trees

EnginePooling = Literal["ltp", "eos"]
POOLINGS: tuple[EnginePooling, ...] = get_args(EnginePooling)


class EngineReasoner:
    """A loaded engine. Calls from several threads wait for each other.

    Args:
        model: :func:`rgalign.reasoner.engine.artifact.load_model`'s, shared by any number of reasoners.
        manifest: of its directory.
        tokenizer: only carried, for the prompts' encoder; ``eos_token_id`` is read with pooling ``eos``.
        threads: cores to use.
        max_batch_tokens: new tokens of one forward pass; longer calls are split, a longer prompt is computed whole.
        state_shift: [D] to subtract from the states at the prompt's last token (:func:`build_engine` measures it); not
            from those at an end-of-text token, where it was not measured.
    """

    def __init__(
        self,
        model: _C.EngineModel,
        manifest: Manifest,
        *,
        tokenizer: Any = None,
        threads: int = 1,
        pooling: EnginePooling = "ltp",
        max_batch_tokens: int = 256,
        state_shift: torch.Tensor | None = None,
    ) -> None:
        if threads < 1:
            raise ConfigError(where="EngineReasoner threads", required="at least 1", received=str(threads))
        if pooling not in ("ltp", "eos"):
            raise ConfigError(where="EngineReasoner pooling", required="ltp or eos", received=repr(pooling))
        self.model = model
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.pooling = pooling
        self._shift = state_shift if pooling == "ltp" else None
        self.max_batch_tokens = max_batch_tokens
        self.hidden_size = manifest.config.hidden
        self.provenance: dict[str, str] = {
            "model": manifest.model,
            "pooling": pooling,
            "dtype": manifest.dtype,
            "engine": manifest.hash,
        }
        self._session = _C.EngineSession(model, threads)
        self._prefix: tuple[int, ...] = ()
        self._in_use = threading.Lock()

    @property
    def hash(self) -> str:
        return sha256_json(self.provenance)

    @property
    def num_bytes(self) -> int:
        """Memory of weights, keys, values and scratch."""
        return self.model.num_bytes + self._session.num_bytes

    def embed(
        self,
        token_ids: Sequence[TokenIds],
        *,
        prefix_ids: Sequence[int] = (),
        on_prompts: Callable[[int], None] = lambda count: None,
    ) -> torch.Tensor:
        """Latent queries of whole prompts.

        Args:
            token_ids: B non-empty int32 arrays of any lengths, in any order, each what follows ``prefix_ids``.
            prefix_ids: tokens that stand before every prompt; their keys and values are kept for the next call.
            on_prompts: told how many prompts each forward pass finished.

        Returns:
            [B, D] float32, not normalised.

        Raises:
            DataError: an empty prompt or call, a prompt longer than the model was trained for, or a token outside the
                vocabulary.
        """
        prefix = tuple(int(token) for token in prefix_ids)
        if prefix:
            checked_tokens("prefix", prefix, self.manifest.config, int(self.pooling == "eos"))
        prompts = [self._prompt(index, ids, len(prefix)) for index, ids in enumerate(token_ids)]
        if not prompts:
            raise DataError(where="EngineReasoner.embed", required="at least one prompt", received="none")
        latents = torch.empty(len(prompts), self.hidden_size)
        with self._in_use:
            if prefix != self._prefix:
                self._session.set_prefix(np.asarray(prefix, dtype=np.int32))
                self._prefix = prefix
            for tree in prefix_trees(prompts, self.max_batch_tokens):
                latents[tree.rows] = torch.from_numpy(self._forward(tree))
                on_prompts(len(tree.rows))
        return latents if self._shift is None else latents - self._shift

    def _forward(self, tree: PrefixTree) -> NDArray[np.float32]:
        pack = pack_tree(tree)
        return self._session.forward(
            self.hidden_size,
            tree.token_ids.astype(np.int32),
            tree.depths.astype(np.int32),
            tree.given.astype(np.int32),
            pack.segments,
            pack.runs,
            pack.last,
        )

    def _prompt(self, index: int, ids: TokenIds, prefix_length: int) -> TokenIds:
        array = checked_tokens(f"prompt {index}", ids, self.manifest.config, prefix_length + (self.pooling == "eos"))
        if self.pooling == "eos":
            array = np.append(array, np.int32(self.tokenizer.eos_token_id))
        return array


def checked_tokens(where: str, ids: ArrayLike, config: DecoderConfig, others: int) -> TokenIds:
    """Token ids as int32.

    Args:
        others: tokens that stand before or behind them.

    Raises:
        DataError: empty, not integers, outside the vocabulary, or longer than the model was trained for.
    """
    array = np.asarray(ids)
    if array.ndim != 1 or array.size == 0:
        raise DataError(where=where, required="a non-empty row of token ids", received=f"shape {array.shape}")
    if array.dtype.kind not in "iu":
        raise DataError(where=where, required="integer token ids", received=str(array.dtype))
    if array.min() < 0 or array.max() >= config.vocabulary:
        received = f"{int(array.min())}..{int(array.max())}"
        raise DataError(where=where, required=f"token ids in 0..{config.vocabulary - 1}", received=received)
    length, limit = others + array.size, config.max_positions
    if length > limit:
        raise DataError(where=where, required=f"at most {limit} tokens with the prefix", received=str(length))
    return array.astype(np.int32)


@dataclass(frozen=True)
class PackedTree:
    """A prefix tree in the form of csrc/engine/session.h.

    segments: [S, 4] begin and end among the new nodes, first and last of its runs.
    runs: [R, 2] ancestors as ranges of nodes, given ones first.
    last: [B] new node of each prompt's last token.
    """

    segments: NDArray[np.int32]
    runs: NDArray[np.int32]
    last: NDArray[np.int32]


def pack_tree(tree: PrefixTree) -> PackedTree:
    num_given = len(tree.given)
    segments: list[tuple[int, int, int, int]] = []
    runs: list[tuple[int, int]] = []
    size = num_given
    for path in tree.paths:
        shared = int(np.searchsorted(path, size))  # nodes are numbered in order of first appearance
        if shared == len(path):
            continue
        above = path[:shared]
        cuts = np.flatnonzero(np.diff(above) != 1) + 1
        first = len(runs)
        runs.extend((int(run[0]), int(run[-1]) + 1) for run in np.split(above, cuts) if len(run))
        size = int(path[-1]) + 1
        segments.append((int(path[shared]) - num_given, size - num_given, first, len(runs)))
    return PackedTree(
        np.array(segments, dtype=np.int32).reshape(-1, 4),
        np.array(runs, dtype=np.int32).reshape(-1, 2),
        np.array([int(path[-1]) - num_given for path in tree.paths], dtype=np.int32),
    )


def load_engine(
    directory: Path | str,
    threads: int = 1,
    *,
    tokenizer: Any = None,
    pooling: EnginePooling = "ltp",
    max_batch_tokens: int = 256,
) -> EngineReasoner:
    """The reasoner of a directory that ``rgalign engine build`` wrote; every file's hash is checked.

    Raises:
        DataError: no engine there, or a damaged one.
    """
    path = Path(directory)
    manifest = read_manifest(path)
    return EngineReasoner(
        load_model(path, manifest),
        manifest,
        tokenizer=tokenizer,
        threads=threads,
        pooling=pooling,
        max_batch_tokens=max_batch_tokens,
        state_shift=load_state_shift(path),
    )
