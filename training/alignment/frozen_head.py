"""Token log-probabilities under an LM head that does not train, on a CPU: one product forward, one back.

TRL's fused head projects twice, in tiles, and multiplies the state's gradient out in float32: right for a GPU's memory
and for a head that trains. A CPU has room for the logits of the supervised positions, and autocast's bfloat16 products,
which accumulate in float32 and round once, are less than half of the time there (bench/NOTES.md).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rgalign.training.alignment.trl_parts import replaced

KERNEL = "_ChunkedLogProbFunction"  # in TRL 1.16
OURS = {"log_probs", "entropy", "mean_logits", "is_top1"}  # of the per-token fields its head may be asked for


def frozen_head() -> AbstractContextManager[None]:
    """TRL's fused LM head becomes :func:`token_log_probs` where that applies."""
    return replaced(KERNEL, _Either)


def token_log_probs(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, ...]:
    """Args: hidden: final states [N, D]. weight: [V, D], bias: [V]. targets: token ids [N].

    Returns:
        log-probabilities, with gradient, entropies in nats, mean logits, and whether the target is the first argmax,
        [N] each.
    """
    logits = F.linear(hidden, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_probs = -F.cross_entropy(logits, targets, reduction="none")
    with torch.no_grad():
        normaliser = logits.gather(-1, targets[:, None]) - log_probs[:, None]
        entropies = normaliser[:, 0] - (logits - normaliser).exp_().mul_(logits).sum(dim=-1)
        first = logits.argmax(dim=-1) == targets
        means = logits.mean(dim=-1)
    return log_probs, entropies, means, first


class _Either:
    """Stands in for TRL's autograd function."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def apply(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        softcap: float | None,
        scale: float,
        outputs: tuple[str, ...],
    ) -> Any:
        trains = weight.requires_grad or hasattr(weight, "ds_id")  # a shard of ZeRO's is gone before the backward pass
        plain = temperature == 1 and scale == 1 and softcap is None and set(outputs) <= OURS
        if trains or not plain or hidden.device.type != "cpu":
            return self._kernel.apply(hidden, weight, bias, targets, temperature, chunk_size, softcap, scale, outputs)
        log_probs, entropies, means, first = token_log_probs(hidden, weight, bias, targets)
        return log_probs, entropies, None, means, first
