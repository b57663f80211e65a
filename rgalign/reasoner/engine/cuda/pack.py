"""The integers of one packed forward, in one buffer, so that one copy brings them to the GPU.

A pack has room for T tokens and S sequences; a CUDA graph is captured for a room, and what is packed may be less:
tokens behind the last belong to no sequence, sequences behind the last are empty, tiles behind the last are idle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rgalign.kernels.prefix_attention import block_rows, query_tiles

Ints = NDArray[np.int32]
ALIGNED = 4  # integers: every part begins at 16 bytes, or Triton compiles another kernel for it
Buffer = TypeVar("Buffer", Tensor, Ints)


@dataclass(frozen=True)
class Heads:
    """What decides the tiles of attention."""

    num_heads: int
    num_kv_heads: int

    @property
    def group(self) -> int:
        return self.num_heads // self.num_kv_heads

    def block_m(self, one_token: bool) -> int:
        return block_rows(self.num_heads, self.num_kv_heads, one_token)


class Parts(NamedTuple):
    """Views of one buffer, on the host or on the GPU."""

    token_ids: Tensor  # [T] int32, as all of them
    positions: Tensor  # [T]
    cu_seqlens: Tensor  # [S + 1]
    last: Tensor  # [S] each sequence's last token
    each: Tensor  # [S + 1] 0, 1, 2 ...: offsets of one query a sequence
    tiles: Tensor  # [programs, 2] of attention from all tokens
    last_tiles: Tensor  # [S, 2] and from each sequence's last


@dataclass(frozen=True)
class Room:
    """Args: tokens, sequences: what fits; heads: of the model."""

    tokens: int
    sequences: int
    heads: Heads

    @property
    def num_tiles(self) -> int:
        """At most: every sequence's last tile may be a part of one."""
        each = self.heads.block_m(False) // self.heads.group
        return self.tokens // each + self.sequences

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return (
            (self.tokens,),
            (self.tokens,),
            (self.sequences + 1,),
            (self.sequences,),
            (self.sequences + 1,),
            (self.num_tiles, 2),
            (self.sequences, 2),
        )

    @property
    def size(self) -> int:
        """Integers of a buffer."""
        return sum(_aligned(shape) for shape in self.shapes)

    def parts(self, buffer: Buffer) -> list[Buffer]:
        found, begin = [], 0
        for shape in self.shapes:
            found.append(buffer[begin : begin + int(np.prod(shape))].reshape(shape))
            begin += _aligned(shape)
        return found

    def fits(self, tokens: int, sequences: int) -> bool:
        return tokens <= self.tokens and sequences <= self.sequences

    def fill(self, buffer: Ints, prompts: Sequence[Ints], first_position: int) -> None:
        """Packs prompts, whose first tokens stand at ``first_position``."""
        token_ids, positions, cu_seqlens, last, each, tiles, last_tiles = self.parts(buffer)
        lengths = [len(prompt) for prompt in prompts]
        offsets = np.cumsum([0, *lengths], dtype=np.int32)
        total, count = int(offsets[-1]), len(prompts)
        assert self.fits(total, count), (self, total, count)
        np.concatenate(prompts, out=token_ids[:total])
        positions[:total] = first_position + np.arange(total) - np.repeat(offsets[:-1], lengths)
        token_ids[total:] = positions[total:] = 0
        cu_seqlens[: count + 1], cu_seqlens[count + 1 :] = offsets, total
        last[:count], last[count:] = offsets[1:] - 1, 0
        each[:] = np.arange(self.sequences + 1)
        for part, queries, one_token in ((tiles, lengths, False), (last_tiles, [1] * count, True)):
            found = query_tiles(queries, self.heads.group, self.heads.block_m(one_token))
            part[: len(found)], part[len(found) :] = found, -1


def _aligned(shape: Sequence[int]) -> int:
    return -(-int(np.prod(shape)) // ALIGNED) * ALIGNED


def packed(prompts: Sequence[Ints], first_position: int, heads: Heads, device: torch.device) -> Parts:
    """A pack of just these prompts."""
    room = Room(sum(map(len, prompts)), len(prompts), heads)
    buffer = np.zeros(room.size, np.int32)
    room.fill(buffer, prompts, first_position)
    return Parts(*room.parts(torch.from_numpy(buffer).to(device)))
