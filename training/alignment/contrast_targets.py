"""Frozen targets e+ and which of them are negatives of a session: the RG-CL term beyond the loss itself.

Targets are constants, so negatives from the whole effective batch (all micro-batches, all processes) and from a bank
cost no second forward pass, and the loss of a session does not depend on which micro-batch it stands in: gradients add
up to the full batch's exactly (recommender.md, finding 5).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from rgalign.training.alignment.alignment_config import ContrastConfig
from rgalign.training.alignment.contrast_space import Space
from rgalign.training.alignment.losses import contrastive_loss
from rgalign.training.alignment.preferences import Preference

NO_INTENT = -1


class ContrastTargets:
    """All sessions' targets.

    Args:
        targets: [N, D] in the order of ``items``.
        latents: [n, D] frozen latent queries of trained sessions, for ``space: standardized``.
        trained: rows that the bank may be drawn from.
        seed: of the bank.
    """

    def __init__(
        self,
        targets: NDArray[np.float32],
        latents: NDArray[np.float32],
        items: Sequence[Preference],
        trained: Sequence[int],
        config: ContrastConfig,
        *,
        seed: int,
    ) -> None:
        self.config = config
        given = torch.from_numpy(np.array(targets, np.float32))
        standardized = config.space == "standardized"
        raw = Space.raw(given.shape[1])
        self.space = Space.of(torch.from_numpy(latents)) if standardized else raw
        self.target_space = Space.of(given[list(trained)]) if standardized else raw
        self.targets = self.target_space(given)
        texts = {text: number for number, text in enumerate(dict.fromkeys(item.chosen for item in items))}
        self.text = torch.tensor([texts[item.chosen] for item in items])
        self.session = torch.tensor([item.split_row for item in items])
        self.clicked = _table([item.clicked for item in items])
        size = min(config.bank, len(trained))
        drawn = np.random.default_rng(seed).choice(np.asarray(trained), size, replace=False)
        self.bank = torch.from_numpy(np.sort(drawn).astype(np.int64))

    def loss(self, latents: Tensor, rows: Tensor, step_rows: Tensor) -> Tensor:
        """[B] InfoNCE of sessions ``rows`` against the targets of ``step_rows`` and the bank.

        Args:
            latents: [B, D]. rows: [B]. step_rows: rows of every session of the optimiser step.
        """
        rows = rows.cpu()
        others = torch.unique(torch.cat([step_rows.cpu(), self.bank]))
        own = self.targets[rows].to(latents)
        return contrastive_loss(
            self.space(latents),
            own,
            self.targets[others].to(latents),
            self.masked(rows, others).to(latents.device),
            tau=self.config.tau,
        )

    def cosine(self, latents: Tensor, rows: Tensor) -> Tensor:
        """[B] cos(h, e+) in the loss's space, in float32."""
        return functional.cosine_similarity(
            self.space(latents.detach().float().cpu()), self.targets[rows.cpu()], dim=-1
        )

    def masked(self, rows: Tensor, others: Tensor) -> Tensor:
        """[B, S] True where the other asks the same: its own session, equal text, a shared click, or near targets."""
        same_session = self.session[rows][:, None] == self.session[others][None, :]
        same_text = self.text[rows][:, None] == self.text[others][None, :]
        ours, theirs = self.clicked[rows][:, None, :, None], self.clicked[others][None, :, None, :]
        same_click = ((ours == theirs) & (ours != NO_INTENT)).any(dim=3).any(dim=2)
        left, right = (functional.normalize(self.targets[which], dim=-1) for which in (rows, others))
        near = left @ right.T > self.config.false_negative_cosine
        return same_session | same_text | same_click | near


def _table(lists: Sequence[Sequence[int]]) -> Tensor:
    """[N, longest] padded with NO_INTENT."""
    width = max(1, *map(len, lists)) if lists else 1
    table = torch.full((len(lists), width), NO_INTENT)
    for row, values in enumerate(lists):
        table[row, : len(values)] = torch.tensor(values, dtype=torch.long)
    return table
