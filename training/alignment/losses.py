"""The losses of alignment on tensors alone: RG-CL (paper, eq. 11), RG-DPO (eq. 10) and S-DPO (Chen et al. 2024).

    CL     -log  exp(cos(h_i, e_i)/tau) / sum_j exp(cos(h_i, e_j)/tau)      j over i and its negatives
    DPO    -log sigmoid(beta (d_w - d_l))                                     d = policy logps - reference logps
    S-DPO  -log sigmoid(-log sum_l exp(beta (d_l - d_w)))                     one l: DPO

A value is returned for each session: a batch and its parts, summed and divided by one number, give one gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def contrastive_loss(latents: Tensor, positives: Tensor, negatives: Tensor, masked: Tensor, *, tau: float) -> Tensor:
    """InfoNCE of each session; the positive stands in the denominator once, whatever the negatives hold.

    Args:
        latents: [B, D] latent queries h. positives: [B, D] embeddings e+ of their chosen queries.
        negatives: [S, D] embeddings of other chosen queries.
        masked: [B, S] True where a negative is none for that session (its own query, or a false negative).

    Returns:
        [B], not negative; 0 for a session without negatives.
    """
    unit = functional.normalize(latents, dim=-1)
    own = (unit * functional.normalize(positives, dim=-1)).sum(dim=-1, keepdim=True)
    others = (unit @ functional.normalize(negatives, dim=-1).T).masked_fill(masked, -torch.inf)
    logits = torch.cat([own, others], dim=1) / tau
    return torch.logsumexp(logits, dim=1) - logits[:, 0]


def preference_loss(chosen: Tensor, rejected: Tensor, session: Tensor, *, beta: float) -> Tensor:
    """S-DPO of each session, which with one rejected query is DPO.

    Args:
        chosen: [B] log-ratios (policy minus reference) of the chosen queries.
        rejected: [R] log-ratios of all rejected queries. session: [R] the row of ``chosen`` each belongs to; every row
            has at least one.

    Returns:
        [B]; ln 2 for a session with one rejected query while policy and reference are equal.
    """
    owner = torch.arange(len(chosen), device=chosen.device)[:, None] == session[None, :]
    gaps = (beta * (rejected[None, :] - chosen[:, None])).masked_fill(~owner, -torch.inf)
    return functional.softplus(torch.logsumexp(gaps, dim=1))
