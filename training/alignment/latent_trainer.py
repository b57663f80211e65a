"""RG-SFT and RG-CL (paper, eqs 8 and 11) in TRL's SFTTrainer.

    loss = causal_weight * NLL of the chosen query's tokens + contrast_weight * InfoNCE(h, e+)

One forward pass over [prompt; chosen query] gives both: attention is causal, so the state at the prompt's last token
(by length, after the final norm) is the latent query that serving computes. RG-SFT is the weights 1 and 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from trl import SFTTrainer  # type: ignore[attr-defined]  # TRL re-exports lazily

from rgalign.training.alignment.contrast_targets import ContrastTargets
from rgalign.training.alignment.marked_trainer import MarkedCheckpoints


class LatentTrainer(MarkedCheckpoints, SFTTrainer):
    """Args:
    targets: None only measures the causal term.
    rewards: judges latent queries where they are measured and not trained.
    contrast_weight, causal_weight: of the two terms.
    """

    model: Any

    def __init__(
        self,
        *args: Any,
        targets: ContrastTargets | None,
        rewards: Callable[[Tensor, Tensor], Tensor] | None,
        contrast_weight: float,
        causal_weight: float,
        **arguments: Any,
    ) -> None:
        super().__init__(*args, **arguments)
        assert targets is not None or contrast_weight == 0
        self.targets, self.rewards = targets, rewards
        self.contrast_weight, self.causal_weight = contrast_weight, causal_weight
        self._step_rows = torch.empty(0, dtype=torch.long)  # of the optimiser step, over all processes

    def get_batch_samples(self, *args: Any, **arguments: Any) -> Any:
        samples, num_items = super().get_batch_samples(*args, **arguments)
        own = [row for sample in samples for row in sample["row"].tolist()]
        self._step_rows = torch.tensor(gather_object(own), dtype=torch.long)
        return samples, num_items

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        inputs = dict(inputs)
        rows, ends = inputs.pop("row"), inputs.pop("prompt_end")
        with final_states(self.accelerator.unwrap_model(model)) as seen:
            causal = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)  # type: ignore[no-untyped-call]
        if self.targets is None:
            return self.causal_weight * causal
        latents = seen[0][torch.arange(len(ends), device=ends.device), ends]
        self._record("cos", self.targets.cosine(latents, rows))
        if self.rewards is not None and not self.model.training:
            self._record("reward", self.rewards(latents, rows))
        if not self.contrast_weight:
            return self.causal_weight * causal
        training = self.model.training
        step_rows = self._step_rows if training else rows
        losses = self.targets.loss(latents, rows, step_rows)
        self._record("contrast", losses.detach().float().cpu())
        if training:  # every process averages gradients: its part of the step's mean counts once for each of them
            contrast = losses.sum() * self.accelerator.num_processes / len(step_rows)
        else:
            contrast = losses.mean()
        return self.causal_weight * causal + self.contrast_weight * contrast

    def _record(self, name: str, values: Tensor) -> None:
        """A mean over sessions of all processes since the last log."""
        gathered = self.accelerator.gather_for_metrics(values.to(self.accelerator.device))
        self._metrics["train" if self.model.training else "eval"][name].extend(gathered.tolist())


@contextmanager
def final_states(model: Any) -> Iterator[list[Tensor]]:
    """Collects the decoder's final states [B, T, D] of the forward pass inside."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    seen: list[Tensor] = []
    hook = base.get_decoder().register_forward_hook(lambda module, given, output: seen.append(output.last_hidden_state))
    try:
        yield seen
    finally:
        hook.remove()
