"""States of the lower layers on disk: one vector a distinct token prefix, computed once for training and embedding.

A causal layer's state at a token depends on that token and those before it, so its address is the chain of their ids:

    address(t_1 .. t_n) = blake2b(address(t_1 .. t_n-1), t_n)

The constant prefix, prompts that begin alike and all queries behind one prompt are shared. A store belongs to the
weights it was made with (``rgalign.training.latents.LatentStore``: chunks written whole, memory-mapped, resumable).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from rgalign.files import sha256_json
from rgalign.reasoner.hf import HFReasoner
from rgalign.reasoner.prefix_tree import PrefixTree, TokenIds, prefix_trees
from rgalign.reasoner.pretrained import cache_directory
from rgalign.room_on_disk import room_on_disk
from rgalign.training.alignment.split_model import lower_part, lower_tensors
from rgalign.training.latents import DIGEST_BYTES, LatentStore

CHUNK_PROMPTS = 128  # what an interrupted run loses at most
ROOT = b""


def extend(address: bytes, token: int) -> bytes:
    """The address of a token behind the tokens of ``address``."""
    return blake2b(address + int(token).to_bytes(4, "little"), digest_size=DIGEST_BYTES).digest()


def addresses(token_ids: Sequence[int] | TokenIds, after: bytes = ROOT) -> list[bytes]:
    """The address of every token of a row."""
    chain = []
    for token in token_ids:
        after = extend(after, int(token))
        chain.append(after)
    return chain


def tree_addresses(tree: PrefixTree, root: bytes, previous: Sequence[bytes]) -> list[bytes]:
    """Addresses of a tree's given and new nodes; ``previous`` are those of the tree before it."""
    chain: list[bytes | None] = [previous[node] for node in tree.given]
    num_given = len(chain)
    chain += [None] * len(tree.token_ids)
    for path in tree.paths:
        above = root
        for node in path:
            known = chain[node]
            if known is None:
                known = chain[node] = extend(above, int(tree.token_ids[node - num_given]))
            above = known
    return [address for address in chain if address is not None]


class LowerStates:
    """The states below layer ``num_layers`` of a model.

    Args:
        model: the whole model; its lower layers must not change as long as this lives.
        cache: directory of stores; None is the user's cache.
        dtype: of the file; float16 halves it and rounds states by up to 1e-3 of their size.
        autocast: products in bfloat16, as training with ``precision: bf16`` has them.
    """

    def __init__(
        self,
        model: Any,
        num_layers: int,
        *,
        cache: Path | None = None,
        dtype: str = "float32",
        autocast: bool = False,
        max_tokens: int = 256,
    ) -> None:
        self.num_layers = num_layers
        self.dtype = model.dtype
        self.device = model.device
        # Autocast converts the weights for each pack anew: larger packs pay for it less often.
        self._max_tokens = 4 * max_tokens if autocast else max_tokens
        self._autocast = autocast
        self._file_dtype = dtype
        self._lower = _EveryState(lower_part(model, num_layers), None)
        provenance = {
            "lower_layers": _fingerprint(model, num_layers),
            "num_layers": num_layers,
            "compute_dtype": str(model.dtype).removeprefix("torch.") + (" autocast bfloat16" if autocast else ""),
            "store_dtype": dtype,
            "dim": model.config.hidden_size,
        }
        directory = (cache or cache_directory() / "states") / sha256_json(provenance)[:24]
        self.store = LatentStore.create(directory, provenance)

    def fill(self, rows: Sequence[TokenIds], *, prefix_ids: Sequence[int] = (), progress: bool = False) -> int:
        """Computes what is missing of the states of ``prefix_ids`` + row, for every row; the number of new states.

        Raises:
            DataError: a full disk; what was written stays.
        """
        before = len(self.store)
        prefix = np.asarray(prefix_ids, np.int32)
        root = addresses(prefix)[-1] if len(prefix) else ROOT
        if len(prefix) and root not in self.store.known:
            self._compute([prefix], (), ROOT)
        missing = {
            row.tobytes(): row
            for row in (np.asarray(each, np.int32) for each in rows)
            if addresses(row, root)[-1] not in self.store.known
        }
        order = sorted(missing.values(), key=lambda row: row.astype(">u4").tobytes())
        console = Console(stderr=True)
        columns = (TextColumn("lower states"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        hidden = not (progress and console.is_terminal)
        with Progress(*columns, TimeRemainingColumn(), console=console, disable=hidden) as bar:
            task = bar.add_task("", total=len(order))
            for start in range(0, len(order), CHUNK_PROMPTS):
                chunk = order[start : start + CHUNK_PROMPTS]
                self._compute(chunk, tuple(prefix_ids), root)
                bar.advance(task, len(chunk))
        return len(self.store) - before

    def take(self, wanted: Sequence[bytes]) -> Tensor:
        """[n, D] states at known addresses, in the model's dtype and on its device."""
        rows = np.array([self.store.known[address] for address in wanted], np.int64)
        return torch.from_numpy(self.store.take(rows)).to(self.device, self.dtype)

    def _compute(self, rows: list[TokenIds], prefix_ids: tuple[int, ...], root: bytes) -> None:
        fresh: dict[bytes, Tensor] = {}
        previous: list[bytes] = []
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            for tree, states in self._lower.states(rows, prefix_ids, self._max_tokens):
                previous = tree_addresses(tree, root, previous)
                for address, state in zip(previous[len(tree.given) :], states, strict=True):
                    if address not in self.store.known:
                        fresh[address] = state
        with room_on_disk(self.store.path):
            stacked = torch.stack(list(fresh.values())).float().cpu().numpy()
            self.store.append(list(fresh), stacked.astype(self._file_dtype))


class StoredStates(nn.Module):
    """In the place of a model's token embeddings: token ids [B, T], padded on the right, to their lower states.

    Args:
        pad_token_id: trailing tokens with this id are padding; their states are zero, and no token attends to them.
    """

    def __init__(self, states: LowerStates, pad_token_id: int) -> None:
        super().__init__()
        self._states = states
        self._pad = pad_token_id

    def forward(self, input_ids: Tensor) -> Tensor:
        rows = [self._unpadded(row) for row in input_ids.cpu().numpy().astype(np.int32)]
        chains = [addresses(row) for row in rows]
        known = self._states.store.known
        self._fill([row for row, chain in zip(rows, chains, strict=True) if chain and chain[-1] not in known])
        found = self._states.take([address for chain in chains for address in chain])
        width = self._states.store.dim
        out = torch.zeros(*input_ids.shape, width, dtype=found.dtype, device=found.device)
        start = 0
        for number, chain in enumerate(chains):
            out[number, : len(chain)] = found[start : start + len(chain)]
            start += len(chain)
        return out

    def _unpadded(self, row: TokenIds) -> TokenIds:
        kept = np.flatnonzero(row != self._pad)
        return row[: kept[-1] + 1] if len(kept) else row[:0]

    def _fill(self, rows: list[TokenIds]) -> None:
        if rows:
            self._states.fill(rows)


class _EveryState(HFReasoner):
    """Reads the state of every new node instead of that of each prompt's last one."""

    @torch.inference_mode()
    def states(
        self, rows: Sequence[TokenIds], prefix_ids: tuple[int, ...], max_tokens: int
    ) -> Iterator[tuple[PrefixTree, Tensor]]:
        prefix = self._prefix(prefix_ids)
        for tree in prefix_trees(rows, max_tokens):
            new = np.arange(len(tree.token_ids)) + len(tree.given)
            yield tree, self._forward(replace(tree, paths=[new[node : node + 1] for node in range(len(new))]), prefix)


def _fingerprint(model: Any, num_layers: int) -> str:
    digest = hashlib.sha256(str(sorted(_shape(model).items())).encode())
    for name, tensor in sorted(lower_tensors(model, num_layers).items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _shape(model: Any) -> dict[str, Any]:
    """Settings that decide what the same weights compute."""
    names = ("model_type", "hidden_act", "rms_norm_eps", "num_attention_heads", "num_key_value_heads", "head_dim")
    return {name: str(getattr(model.config, name, None)) for name in (*names, "rope_parameters", "rope_theta")}
