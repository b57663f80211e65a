"""What NCE pre-training trains: item encoder, projection, and a small user side.

    items = projection(states)                                             [M, dim]
    user  = UserTower(session; histories of intents read `items`)          [B, dim]      (HLLM: a user LLM)

HLLM's user LLM reads the embeddings of the items a user dealt with before. Here they stand in the place of the user
tower's id table, so that it has them and the session's other features, and no table of its own to learn intents by.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgalign.data.batch import SessionBatch
from rgalign.models.hllm import HLLMItemEncoder
from rgalign.models.nce import ItemProjection, LogitScale
from rgalign.models.text_encoder import length_batches
from rgalign.models.text_states import TextStates
from rgalign.models.user_tower import UserTower
from rgalign.schema import FIRST, OOV, FeatureSchema
from rgalign.training.hllm_config import HLLMConfig


class HistoryUser(nn.Module):
    """Sessions and item vectors -> unit user vectors.

    Args:
        schema: bound to the catalogue.
        columns: [N] int64, the column among the M trained intents of each catalogue row, -1 for none.
    """

    table_rows: Tensor

    def __init__(self, config: HLLMConfig, schema: FeatureSchema, columns: Tensor) -> None:
        super().__init__()
        self.tower = UserTower(config.user, schema, config.dim, config.user_dropout)
        self.project = nn.Linear(config.dim, config.user.history_dim)
        self.unknown = nn.Parameter(torch.randn(1, config.user.history_dim) * 0.05)
        rows = torch.where(columns >= 0, columns + FIRST, OOV)
        self.register_buffer("table_rows", torch.cat([torch.tensor([0, OOV]), rows]), persistent=False)

    def forward(self, batch: SessionBatch, items: Tensor) -> Tensor:
        """Args: items: [M, dim]. Returns: [B, dim] unit vectors."""
        padding = torch.zeros_like(self.unknown)
        table = torch.cat([padding, self.unknown, self.project(items)])[self.table_rows]
        return functional.normalize(self.tower(batch, table), dim=-1)


class NCEModel(nn.Module):
    """The trained parts and ``bank`` [M, D], the newest state of each trained intent.

    The frozen LM is kept out of ``state_dict``: checkpoints hold what training changes.
    """

    bank: Tensor

    def __init__(
        self, config: HLLMConfig, encoder: HLLMItemEncoder, bank: Tensor, schema: FeatureSchema, columns: Tensor
    ) -> None:
        super().__init__()
        assert encoder.item_token is not None
        self.item_token = encoder.item_token
        self.decoder = encoder.decoder if config.tune == "all" else None
        self.register_buffer("bank", bank)
        self.projection = ItemProjection(bank, config.dim)
        self.user = HistoryUser(config, schema, columns)
        self.scale = LogitScale()

    def parameter_groups(self, config: HLLMConfig) -> list[dict[str, object]]:
        """AdamW's groups, each with its ``base_lr``: LM, token, head; decay on linear weights only."""
        decoder = set() if self.decoder is None else set(self.decoder.parameters())
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        matrices = {id(part.weight) for part in self.modules() if isinstance(part, nn.Linear)}
        for parameter in self.parameters():
            rate = config.learning_rate if parameter in decoder else config.head_learning_rate
            if parameter is self.item_token:
                rate = config.learning_rate if decoder else config.token_learning_rate
            decay = config.weight_decay if id(parameter) in matrices else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
        return [
            {"params": parameters, "lr": rate, "base_lr": rate, "weight_decay": decay}
            for (rate, decay), parameters in groups.items()
        ]


class IntentStates:
    """States of the M trained intents: one token on stored keys and values, or whole texts if the LM is tuned."""

    def __init__(self, encoder: HLLMItemEncoder, token_ids: list[list[int]], texts: list[TextStates] | None) -> None:
        self.encoder, self.token_ids, self.texts = encoder, token_ids, texts

    def __call__(self, columns: Sequence[int]) -> Tensor:
        """[n, D], with gradients where they are on."""
        if self.texts is None:
            states: Tensor = self.encoder([self.token_ids[column] for column in columns])
            return states
        return self.encoder.item_states([self.texts[column] for column in columns])

    @torch.no_grad()
    def constant(self, columns: Sequence[int]) -> Tensor:
        """[n, D] without gradients, in batches."""
        states = torch.empty(len(columns), self.encoder.dim, device=self.encoder.device)
        for places in length_batches([len(self.token_ids[column]) for column in columns], self.encoder.batch_tokens):
            states[places] = self([columns[place] for place in places])
        return states
