"""NCE pre-training of the item encoder: the steps.

Every ``lm_every``-th step runs the LM: ``fresh_intents`` of the batch's intents with gradients to the item token (and
the LM, if it is tuned), the other intents without, so that the bank's states are always of one token. Between these
steps the user side and the projection train on the bank.

What a step draws depends on the seed and the step's number alone, so a resumed run needs no random state.
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn

from rgalign.models.nce import nce_logits, nce_loss
from rgalign.training.click_pairs import ClickPairs
from rgalign.training.hllm_config import HLLMConfig
from rgalign.training.nce_model import IntentStates, NCEModel
from rgalign.training.trainer_state import Checkpoints
from rgalign.training.trainer_state import Progress as TrainingState

PROBED_STEPS = 2  # rounds of lm_every steps that are timed before the schedule is fitted to max_seconds
EVALUATIONS = 8


class NCETrainer:
    """Runs the steps, times and checkpoints them."""

    def __init__(
        self,
        config: HLLMConfig,
        model: NCEModel,
        intents: IntentStates,
        pairs: ClickPairs,
        valid: ClickPairs | None,
        checkpoints: Checkpoints,
    ) -> None:
        self.config, self.model, self.intents = config, model, intents
        self.pairs, self.valid, self.checkpoints = pairs, valid, checkpoints
        self.optimizer = torch.optim.AdamW(model.parameter_groups(config))

    def run(self, bar: Progress) -> TrainingState:
        loaded = self.checkpoints.load(self.model, self.optimizer)
        state = loaded[0] if loaded else TrainingState(position={"planned_steps": self.config.max_steps})
        assert state.position is not None
        if not state.history:
            state.history.append({"step": 0, **self.evaluate()})
        task = bar.add_task("NCE steps", total=state.position["planned_steps"], completed=state.step)
        saved = time.perf_counter()
        while state.step < state.position["planned_steps"]:
            began = time.perf_counter()
            planned = state.position["planned_steps"]
            loss = self.step(state.step, planned)
            state.step += 1
            state.total_seconds += time.perf_counter() - began
            if state.step == PROBED_STEPS * self.config.lm_every:
                state.position["planned_steps"] = self.plan(state)
            if state.step % max(1, planned // EVALUATIONS) == 0 or state.step >= state.position["planned_steps"]:
                state.history.append({"step": state.step, "train_nce": loss, **self.evaluate()})
            bar.update(task, completed=state.step, total=state.position["planned_steps"])
            if time.perf_counter() - saved >= self.config.checkpoint_seconds:
                self.checkpoints.save(self.model, self.optimizer, state, [])
                saved = time.perf_counter()
        # The last state too: killed while the catalogue is encoded, a run need not train again.
        self.checkpoints.save(self.model, self.optimizer, state, [])
        self.model.eval()
        return state

    def plan(self, state: TrainingState) -> int:
        """Steps that fit into ``max_seconds`` at the speed seen so far."""
        if self.config.max_seconds is None:
            return self.config.max_steps
        affordable = int(self.config.max_seconds * state.step / state.total_seconds)
        return max(state.step, min(self.config.max_steps, affordable))

    def step(self, number: int, planned: int) -> float:
        """One optimiser step; what it draws depends on the seed and ``number`` only."""
        self.model.train()
        draw = np.random.default_rng([self.config.seed, number])
        torch.manual_seed(int(draw.integers(2**31)))  # dropout
        chosen = torch.from_numpy(draw.integers(len(self.pairs), size=self.config.batch_size))
        device = self.model.bank.device
        clicked = self.pairs.clicked[chosen].to(device)
        positive = torch.multinomial(clicked.float(), 1).squeeze(1)
        columns = self._draw_columns(positive, draw)
        if number % self.config.lm_every == 0:
            states = self._refresh(columns, draw)
        else:
            states = self.model.bank
        items = self.model.projection(states)
        users = self.model.user(self.pairs.batch.select(chosen).to(device), items)
        logits = nce_logits(
            users,
            items[columns],
            torch.searchsorted(columns, positive),
            clicked[:, columns],
            self.model.scale(),
            self.config.nce_threshold,
        )
        loss = nce_loss(logits, torch.searchsorted(columns, positive))
        self._descend(loss, number / planned)
        return loss.item()

    def _draw_columns(self, positive: Tensor, draw: np.random.Generator) -> Tensor:
        """Ascending columns of the batch's positives and the drawn negatives."""
        size = self.pairs.clicked.shape[1]
        if size <= self.config.num_negatives:
            return torch.arange(size, device=positive.device)
        drawn = torch.from_numpy(draw.choice(size, self.config.num_negatives, replace=False)).to(positive.device)
        columns: Tensor = torch.unique(torch.cat([positive, drawn]))
        return columns

    def _refresh(self, columns: Tensor, draw: np.random.Generator) -> Tensor:
        """All intents encoded anew: [M, D], with gradients through some of the batch's."""
        fresh = draw.permutation(columns.cpu().numpy())[: self.config.fresh_intents].tolist()
        states = self.intents(fresh)
        index = torch.tensor(fresh, device=columns.device)
        bank = self.model.bank
        bank.index_copy_(0, index, states.detach())
        rest = sorted(set(range(len(bank))) - set(fresh))
        if rest:
            bank[rest] = self.intents.constant(rest)
        self.model.projection.fit(bank)
        live: Tensor = bank.index_copy(0, index, states)
        return live

    def _descend(self, loss: Tensor, share: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * schedule(share, self.config.warmup)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Validation sessions: mean NCE of a click against all M intents; share with a click in the first three."""
        if self.valid is None or not len(self.valid):
            return {}
        self.model.eval()
        device = self.model.bank.device
        items = self.model.projection(self.model.bank)
        users = self.model.user(self.valid.batch.to(device), items)
        scores = self.model.scale() * users @ items.T
        clicked = self.valid.clicked.to(device)
        nce = -(scores.log_softmax(dim=1) * clicked).sum(1) / clicked.sum(1)
        top = clicked.gather(1, scores.topk(min(3, scores.shape[1]), dim=1).indices).any(dim=1)
        return {"valid_nce": float(nce.mean()), "valid_hit_at_3": float(top.float().mean())}


def schedule(share: float, warmup: float) -> float:
    """Linear warm-up over the first ``warmup`` of the steps, cosine to zero over the rest."""
    if share < warmup:
        return (share + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1.0 + math.cos(math.pi * (share - warmup) / (1.0 - warmup)))
