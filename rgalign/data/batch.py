"""SessionBatch: what the towers read. Column arrays of one batch of sessions, as tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SessionBatch:
    """B encoded sessions. Histories are newest first and padded behind; L is the longest one of the batch.

    Codes: 0 missing or padding, 1 unknown, 2.. known values in vocabulary order.

    Args:
        categorical: [B, Fc] int64 codes, in schema order.
        numerical: [B, Fn] float32, transformed and standardised, 0 where missing.
        missing: [B, Fn] bool.
        sequences: name -> [B, L] int64 codes.
        groups: name -> member -> [B, L], int64 codes or float32. The age member is in hours, other numbers are
            standardised; NaN is a missing number inside a history, 0 is padding.
        group_lengths: name -> [B] int64 steps that are not padding.
        candidates: [B, C] int64 catalogue rows, -1 is padding; None: every list is the whole catalogue.
        clicked: [B, P] int64 catalogue rows, -1 is padding.
        latent: [B, D] float32 latent queries, None without a reasoner.
    """

    categorical: Tensor
    numerical: Tensor
    missing: Tensor
    sequences: dict[str, Tensor]
    groups: dict[str, dict[str, Tensor]]
    group_lengths: dict[str, Tensor]
    candidates: Tensor | None
    clicked: Tensor
    latent: Tensor | None

    def __len__(self) -> int:
        return self.categorical.shape[0]

    def to(self, device: torch.device | str) -> SessionBatch:
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def select(self, index: Tensor) -> SessionBatch:
        """The sessions at ``index``: [n] int64 positions, or a [B] bool mask."""
        return self._map(lambda tensor: tensor[index])

    def without_latent(self) -> SessionBatch:
        """The same sessions as the ranker sees them when the reasoner is late."""
        return SessionBatch(**{**self.__dict__, "latent": None})

    def _map(self, change: Callable[[Tensor], Tensor]) -> SessionBatch:
        return SessionBatch(
            categorical=change(self.categorical),
            numerical=change(self.numerical),
            missing=change(self.missing),
            sequences={name: change(codes) for name, codes in self.sequences.items()},
            groups={
                name: {member: change(values) for member, values in members.items()}
                for name, members in self.groups.items()
            },
            group_lengths={name: change(lengths) for name, lengths in self.group_lengths.items()},
            candidates=None if self.candidates is None else change(self.candidates),
            clicked=change(self.clicked),
            latent=None if self.latent is None else change(self.latent),
        )
