"""Forwards of packed prompts: a CUDA graph for each bucket of tokens, eagerly where none fits.

A graph holds the whole forward and, with a head, the fused scorer behind it: one copy in, one replay, one copy out. Its
room for tokens and sequences is fixed; what is left of it is padding. Keys and values of the constant prefix are
computed once and are part of every graph, so another prefix means other graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rgalign.kernels.on_cpu import kernels_on_cpu
from rgalign.kernels.project_score_topk import launch, project_score_topk
from rgalign.kernels.score_reference import Projection, Winners
from rgalign.reasoner.engine.cuda.decoder import Decoder
from rgalign.reasoner.engine.cuda.pack import Ints, Parts, Room, packed

Floats = NDArray[np.float32]
TOKEN_BUCKETS = (64, 128, 192, 256, 320, 384, 512, 768, 1024, 1536, 2048)  # edges of int8_gemm_tiles.json
SEQUENCE_TOKENS = 32  # a bucket has room for as many sequences as there are parts of this size in it
WARM_UP = 2  # forwards before a capture: kernels are compiled, libraries allocate


@dataclass(frozen=True)
class Head:
    """The fused scorer's side of a graph; see :func:`rgalign.kernels.project_score_topk.project_score_topk`.

    Args:
        vectors: [N, D] unit vectors, with ``scales`` [N] if int8; k: winners a session.
    """

    projection: Projection
    vectors: Tensor
    scales: Tensor | None
    k: int

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1])

    def score(self, states: Tensor, user: Tensor, omega: Tensor) -> Winners:
        call = launch if kernels_on_cpu() else project_score_topk
        return call(user, states, self.projection, omega, self.vectors, self.scales, self.k)


@dataclass(frozen=True)
class Ranked:
    """Of B prompts, on the host: states [B, D], or [0, D] unasked; with a head its winners, [B, k] each."""

    states: Tensor
    winners: Winners | None = None


@dataclass
class Usage:
    """What was asked of a runner since it was made."""

    replayed: int = 0
    eager: int = 0
    tokens: int = 0
    padding: int = 0  # tokens that replays computed for nothing

    @property
    def replay_share(self) -> float:
        return self.replayed / max(1, self.replayed + self.eager)

    @property
    def padding_share(self) -> float:
        return self.padding / max(1, self.tokens + self.padding)


class Bucket:
    """One captured graph and the memory that it reads and writes."""

    def __init__(self, decoder: Decoder, room: Room, prefix: Tensor | None, head: Head | None, pool: object) -> None:
        self.room, self._head = room, head
        device, dim = decoder.device, 0 if head is None else head.dim
        # The scorer's numbers lie behind the forward's integers, so that one copy brings both.
        self._host = torch.zeros(room.size + room.sequences * (1 + dim), dtype=torch.int32, pin_memory=True)
        self._given = torch.zeros_like(self._host, device=device)
        self._omega, self._user = (each.numpy() for each in self._head_inputs(self._host))
        omega, user = self._head_inputs(self._given)
        parts = Parts(*room.parts(self._given))
        lengths = np.diff(np.linspace(0, room.tokens, room.sequences + 1).astype(int))
        self._fill([np.zeros(length, np.int32) for length in lengths], 0 if prefix is None else prefix.shape[1])

        def forward() -> tuple[Tensor, Tensor]:
            states = decoder.forward(parts, prefix)
            return states, states if head is None else _in_one(head.score(states, user, omega))

        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                forward()
        torch.cuda.current_stream(device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: another reasoner may be serving meanwhile, whose calls are not to end this capture.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):  # type: ignore[arg-type]
            self._states, self._winners = forward()
        self._host_states, self._host_winners = (
            torch.empty_like(each, device="cpu", pin_memory=True) for each in (self._states, self._winners)
        )

    def replay(self) -> None:
        """The graph alone, for timing."""
        self._graph.replay()

    def run(
        self, prompts: Sequence[Ints], first_position: int, user: Floats | None, omega: Floats | None, states: bool
    ) -> Ranked:
        """Copies in, replays, copies out and waits."""
        if user is not None and omega is not None:
            self._omega[: len(user)], self._user[: len(user)] = omega, user
        self._fill(prompts, first_position)
        self._graph.replay()
        scored = self._head is not None and user is not None
        if scored:
            self._host_winners.copy_(self._winners, non_blocking=True)
        if states:
            self._host_states.copy_(self._states, non_blocking=True)
        torch.cuda.current_stream(self._given.device).synchronize()
        found = self._host_states[: len(prompts) if states else 0].clone()
        return Ranked(found, _apart(self._host_winners[: len(prompts)]) if scored else None)

    def _fill(self, prompts: Sequence[Ints], first_position: int) -> None:
        self.room.fill(self._host.numpy(), prompts, first_position)
        self._given.copy_(self._host, non_blocking=True)

    def _head_inputs(self, buffer: Tensor) -> tuple[Tensor, Tensor]:
        """[S] ω and [S, D] user vectors of a buffer; the vectors first, for they are read 16 bytes at a time."""
        numbers, count = buffer[self.room.size :].view(torch.float32), self.room.sequences
        dim = 0 if self._head is None else self._head.dim
        return numbers[count * dim :], numbers[: count * dim].view(count, dim)


def _in_one(winners: Winners) -> Tensor:
    """[S, 4 k] float32, the rows as their bits."""
    rows = winners.rows.to(torch.int32).view(torch.float32)
    return torch.cat([rows, winners.scores, winners.user_part, winners.query_part], dim=1)


def _apart(found: Tensor) -> Winners:
    rows, *numbers = (each.contiguous() for each in found.chunk(4, dim=1))
    return Winners(rows.view(torch.int32).long(), *numbers)


class Runner:
    """Not for several threads at a time.

    Args:
        token_buckets: ascending; see :func:`bucket_ladder`. Ignored on a CPU, where every forward is eager.
        sequence_tokens: see SEQUENCE_TOKENS.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        token_buckets: Sequence[int] = TOKEN_BUCKETS,
        sequence_tokens: int = SEQUENCE_TOKENS,
        head: Head | None = None,
    ) -> None:
        size = max((decoder.workspace_for(tokens) for tokens in token_buckets), default=0)
        workspace = torch.zeros(size, dtype=torch.int32, device=decoder.device)
        self.decoder = replace(decoder, workspace=workspace) if size else decoder
        self.head = head
        self.usage = Usage()
        self.prefix: Tensor | None = None
        self._rooms = [
            Room(tokens, -(-tokens // sequence_tokens), decoder.heads)
            for tokens in token_buckets
            if decoder.device.type == "cuda"
        ]
        self._buckets: dict[Room, Bucket] = {}

    @property
    def prefix_length(self) -> int:
        return 0 if self.prefix is None else int(self.prefix.shape[1])

    def set_prefix(self, token_ids: Ints) -> None:
        """Computes the keys and values of what stands before every prompt; () for nothing. Graphs are let go."""
        self._buckets.clear()
        self.prefix = None
        if len(token_ids):
            pack = packed([token_ids], 0, self.decoder.heads, self.decoder.device)
            self.prefix = self.decoder.keys_and_values(pack)

    def set_head(self, head: Head | None) -> None:
        """Another index or query tower behind the states. Graphs are let go."""
        self._buckets.clear()
        self.head = head

    def warm_up(self) -> None:
        """Captures every bucket's graph, the largest first: the smaller ones then need no memory of their own."""
        pool = torch.cuda.graph_pool_handle() if self._rooms else None
        for room in reversed(self._rooms):
            self._buckets[room] = Bucket(self.decoder, room, self.prefix, self.head, pool)

    @property
    def buckets(self) -> list[Bucket]:
        """Those that are captured, ascending."""
        return [self._buckets[room] for room in self._rooms if room in self._buckets]

    def room_for(self, tokens: int, sequences: int) -> Room | None:
        """The smallest bucket with a graph that holds a pack; None: it will be computed eagerly."""
        return next((room for room in self._rooms if room in self._buckets and room.fits(tokens, sequences)), None)

    def run(
        self,
        prompts: Sequence[Ints],
        user: Floats | None = None,
        omega: Floats | None = None,
        *,
        states: bool = True,
    ) -> Ranked:
        """One forward.

        Args:
            prompts: [L] token ids each, what follows the prefix.
            user, omega: [B, D] and [B], for the head; without them there are no winners.
            states: whether they are copied to the host.
        """
        tokens, count = sum(map(len, prompts)), len(prompts)
        room = self.room_for(tokens, count)
        self.usage.tokens += tokens
        if room is None:
            self.usage.eager += 1
            return self._eagerly(prompts, user, omega)
        self.usage.replayed += 1
        self.usage.padding += room.tokens - tokens
        return self._buckets[room].run(prompts, self.prefix_length, user, omega, states)

    def _eagerly(self, prompts: Sequence[Ints], user: Floats | None, omega: Floats | None) -> Ranked:
        device = self.decoder.device
        pack = packed(prompts, self.prefix_length, self.decoder.heads, device)
        states = self.decoder.forward(pack, self.prefix)
        if self.head is None or user is None or omega is None:
            return Ranked(states.cpu())
        given = (torch.from_numpy(np.ascontiguousarray(each, np.float32)).to(device) for each in (user, omega))
        return Ranked(states.cpu(), Winners(*(each.cpu() for each in self.head.score(states, *given))))


def bucket_ladder(pack_tokens: Sequence[int], count: int, edge: int = 64) -> tuple[int, ...]:
    """At most ``count`` buckets at multiples of ``edge`` that pad the observed packs the least.

    Args:
        pack_tokens: tokens of each observed pack.
    """
    rounded = -(-np.asarray(pack_tokens) // edge) * edge
    sizes, times = np.unique(rounded, return_counts=True)
    before = np.concatenate([[0], np.cumsum(times)])
    # cost[i] of the packs up to size i with the last bucket there; one more bucket each round.
    cost = sizes * before[1:]
    came_from = []
    for _ in range(min(count, len(sizes)) - 1):
        with_one = np.full((len(sizes), len(sizes)), np.inf)
        for last in range(len(sizes)):
            with_one[last, :last] = cost[:last] + sizes[last] * (before[last + 1] - before[1 : last + 1])
            with_one[last, last] = cost[last]
        came_from.append(with_one.argmin(axis=1))
        cost = with_one.min(axis=1)
    chosen = [len(sizes) - 1]
    for step in reversed(came_from):
        chosen.append(int(step[chosen[-1]]))
    return tuple(int(sizes[place]) for place in sorted(set(chosen)))
