"""RG-DPO (paper, eqs 9 and 10) in TRL's DPOTrainer, and S-DPO, which TRL does not offer, as another loss inside it.

The reference is the model before training; its log-probabilities are computed once, before the first step.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset as Rows
from torch import Tensor
from torch.utils.data import DataLoader
from trl import DPOTrainer  # type: ignore[attr-defined]  # TRL re-exports lazily

from rgalign.training.alignment.contrast_targets import ContrastTargets
from rgalign.training.alignment.frozen_head import frozen_head
from rgalign.training.alignment.latent_trainer import final_states
from rgalign.training.alignment.losses import preference_loss
from rgalign.training.alignment.marked_trainer import MarkedCheckpoints
from rgalign.training.alignment.supervised_positions import supervised_positions_only

OURS = ("owner", "row", "prompt_end", "place")  # columns that are not the model's
REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")


class PreferenceTrainer(MarkedCheckpoints, DPOTrainer):
    """DPO over (chosen, rejected) pairs. Rows are tokenised already and stay as they are.

    Args:
        targets: to measure cos(h, e+) beside the margins; None does not.
    """

    model: Any

    def __init__(self, *args: Any, targets: ContrastTargets | None, **arguments: Any) -> None:
        self.targets = targets
        super().__init__(*args, **arguments)

    def _prepare_dataset(self, dataset: Rows, *args: Any) -> Rows:
        return dataset

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        plain = {name: value for name, value in inputs.items() if name not in OURS}
        halves = super().compute_ref_log_probs(model, plain)  # type: ignore[no-untyped-call]
        logps = torch.cat(halves)
        count = len(inputs["row"])
        return logps[:count], logps[count:]

    def _precompute_ref_logps(self, dataset: Rows, name: str, batch_size: int) -> Rows:
        """Adds the reference's columns; a row keeps its own values whichever process computed them."""
        model = self.model
        if self.is_deepspeed_enabled:
            if self._precompute_engine is None:
                from trl.models.utils import prepare_deepspeed

                self._precompute_engine = prepare_deepspeed(self.model, self.accelerator)
            model = self._precompute_engine
        placed = dataset.add_column("place", list(range(len(dataset))))
        loader = DataLoader(placed, batch_size=batch_size, collate_fn=self.data_collator, shuffle=False)
        model.eval()
        found: dict[int, tuple[float, list[float]]] = {}
        # As the policy is computed: rounded alike, the first margins are zero. The trainer is not built yet, so that
        # nothing has wrapped the model or the head.
        with supervised_positions_only(), frozen_head(), self.accelerator.autocast():
            for batch in self.accelerator.prepare(loader):
                chosen, rejected = self.compute_ref_log_probs(model, batch)
                found |= dict(gather_object(_by_place(batch, chosen, rejected)))
        many = isinstance(dataset[0]["rejected_ids"][0], list)
        values = [found[place] for place in range(len(dataset))]
        dataset = dataset.add_column(REFERENCE[0], [value for value, _ in values])
        return dataset.add_column(REFERENCE[1], [others if many else others[0] for _, others in values])

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool) -> Any:
        exact = torch.float64 if self.model.dtype == torch.float64 else torch.float32
        inputs = {**inputs, **{name: inputs[name].to(exact) for name in REFERENCE}}
        with final_states(self.accelerator.unwrap_model(model)) as seen:
            loss = self._preference_loss(model, inputs)
        if self.targets is not None:
            ends, rows = inputs["prompt_end"], inputs["row"]
            latents = seen[0][torch.arange(len(ends), device=ends.device), ends]  # the chosen sequences come first
            self._record("cos", self.targets.cosine(latents, rows))
        return loss

    def _preference_loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        plain = {name: value for name, value in inputs.items() if name not in OURS}
        loss: Tensor = super()._compute_loss(model, plain, return_outputs=False)  # type: ignore[no-untyped-call]
        return loss

    def _record(self, name: str, values: Tensor) -> None:
        gathered = self.accelerator.gather_for_metrics(values.to(self.accelerator.device))
        self._metrics["train" if self.model.training else "eval"][name].extend(gathered.tolist())


class SoftmaxPreferenceTrainer(PreferenceTrainer):
    """S-DPO: one softmax over all rejected queries of a session."""

    def _preference_loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        logps = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            labels=labels,
            use_cache=False,
            fused_lm_head=True,
        ).log_probs.sum(dim=1)
        count, owner = len(inputs["row"]), inputs["owner"]
        chosen = logps[:count] - inputs["ref_chosen_logps"]
        rejected = logps[count:] - inputs["ref_rejected_logps"]
        margins = self.beta * (chosen[owner] - rejected).detach()
        self._record("rewards/margins", margins.float().cpu())
        self._record("rewards/accuracies", (margins > 0).float().cpu())
        self._record("rewards/chosen", (self.beta * chosen.detach()).float().cpu())
        self._record("rewards/rejected", (self.beta * rejected.detach()).float().cpu())
        return preference_loss(chosen, rejected, owner, beta=self.beta).mean()


def _by_place(
    batch: dict[str, Tensor], chosen: Tensor, rejected: Tensor
) -> list[tuple[int, tuple[float, list[float]]]]:
    others: dict[int, list[float]] = defaultdict(list)
    for owner, value in zip(batch["owner"].tolist(), rejected.tolist(), strict=True):
        others[owner].append(value)
    places = batch["place"].tolist()
    return [
        (place, (value, others[number]))
        for number, (place, value) in enumerate(zip(places, chosen.tolist(), strict=True))
    ]
