"""Baseline: two-tower AutoInt with a mixture of four experts (paper 5.1, "Base Model").

    user    fields [B, F, e] -> AutoInt -> experts E_1..E_4, gate g: sum_k g_k E_k(x) -> Linear -> z_u
    intent  fields [N, 2, e] (id, text) -> AutoInt -> Linear -> z_i
    s       cosine(z_u, z_i), trained with the same listwise loss as QE-Rec, so ω = 1

Histories enter as fields of their own: the newest ``num_positions`` steps of each sequence and group member one field a
position, and the attention-pooled rest of it one field.

AutoInt has two published forms (``variant``). ``original``, the authors' TF code: Q, K, V and the residual are
relu(dense), scores are divided by sqrt(head size), ReLU(out + residual), then LayerNorm. ``fuxictr``: Q, K, V linear,
no scale, a linear residual, ReLU, no norm. Layers are multi-head self-attention over the fields of a row.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from rgalign.config import Config
from rgalign.data.batch import SessionBatch
from rgalign.errors import ConfigError
from rgalign.intents import IntentCatalog
from rgalign.models.confidence import ConfidenceConfig
from rgalign.models.intent_tower import IntentFields
from rgalign.models.layers import AttentionPool, encode_present, keyed, learned, mlp, module_key, unit
from rgalign.models.loss import LossConfig
from rgalign.models.qe_rec import confidence_weights
from rgalign.models.ranker import Ranker
from rgalign.models.user_tower import HistoryEmbedding, PlainEmbedding, step_mask
from rgalign.schema import CategoricalFeature, FeatureSchema, GroupFeature, SequenceFeature

Variant = Literal["original", "fuxictr"]


class BaselineConfig(Config):
    """Sizes of the baseline.

    Args:
        num_layers, num_heads, head_dim: AutoInt's.
        num_positions: newest steps of a history that are fields of their own.
        gates: ``task``: one gate for the one task, the click. ``scenario``: one for each value of the categorical
            feature named ``scenario``.
    """

    model: Literal["baseline"] = "baseline"
    dim: int = Field(default=128, gt=0)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    embedding_dim: int = Field(default=16, gt=0)
    variant: Variant = "original"
    num_layers: int = Field(default=3, gt=0)
    num_heads: int = Field(default=2, gt=0)
    head_dim: int = Field(default=16, gt=0)
    num_positions: int = Field(default=3, gt=0)
    num_experts: int = Field(default=4, gt=0)
    expert_hidden: tuple[int, ...] = (256, 128)
    gates: Literal["task", "scenario"] = "task"
    scenario: str | None = None
    id_dropout: float = Field(default=0.1, ge=0, lt=1)
    loss: LossConfig = LossConfig()
    confidence: ConfidenceConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> BaselineConfig:
        if (self.gates == "scenario") != (self.scenario is not None):
            raise ValueError("gates: scenario and scenario: NAME OF A CATEGORICAL FEATURE go together")
        return self


class AutoIntLayer(nn.Module):
    """[B, F, dim_in] -> [B, F, num_heads * head_dim]."""

    def __init__(self, dim_in: int, num_heads: int, head_dim: int, variant: Variant, dropout: float) -> None:
        super().__init__()
        self.variant, self.num_heads = variant, num_heads
        width = num_heads * head_dim
        self.project = nn.Linear(dim_in, 4 * width, bias=variant == "original")  # Q, K, V and the residual
        self.norm = nn.LayerNorm(width) if variant == "original" else None
        self.dropout = nn.Dropout(dropout)
        self.scale = 1 / math.sqrt(head_dim) if variant == "original" else 1.0

    def forward(self, fields: Tensor) -> Tensor:
        projected = self.project(fields)
        if self.variant == "original":
            projected = projected.relu()
        *heads, residual = projected.chunk(4, dim=-1)
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in heads)
        mixed = functional.scaled_dot_product_attention(query, key, value, scale=self.scale)
        crossed = (self.dropout(mixed.transpose(1, 2).flatten(2)) + residual).relu()
        result: Tensor = crossed if self.norm is None else self.norm(crossed)
        return result


def autoint(config: BaselineConfig, dropout: float) -> nn.Sequential:
    width = config.num_heads * config.head_dim
    sizes = [config.embedding_dim] + [width] * config.num_layers
    return nn.Sequential(
        *(
            AutoIntLayer(size, config.num_heads, config.head_dim, config.variant, dropout)
            for size in sizes[: config.num_layers]
        )
    )


class HistoryFields(nn.Module):
    """One history (a sequence, or a member of a group) -> [B, num_positions + 1, e]: newest steps and a pooled rest."""

    def __init__(self, dim: int, num_positions: int) -> None:
        super().__init__()
        self.num_positions = num_positions
        self.empty = learned(num_positions, dim, std=dim**-0.5)
        self.absent = learned(dim, std=dim**-0.5)
        self.position = learned(num_positions, dim, std=dim**-0.5)
        self.pool = AttentionPool(dim)

    def forward(self, steps: Tensor, mask: Tensor) -> Tensor:
        count = min(self.num_positions, steps.shape[1])
        newest = torch.where(mask[:, :count, None], steps[:, :count] + self.position[:count], self.empty[:count])
        beyond = self.empty[count:].to(newest.dtype).expand(len(steps), -1, -1)
        pooled = encode_present(mask, self.absent, lambda rows, attended: self.pool(steps[rows], attended))
        return torch.cat((newest, beyond, pooled.unsqueeze(1)), dim=1)


class UserFields(nn.Module):
    """SessionBatch -> [B, F, e].

    Fields start with norm one: attention without input normalisation sees little in smaller ones (Boston, 8,000
    sessions, R@3 of residents after 8 epochs: 59.7 from a deviation of 0.05, 61.4 from this one).
    """

    def __init__(self, schema: FeatureSchema, dim: int, num_positions: int) -> None:
        super().__init__()
        self.plain = PlainEmbedding(schema, dim, dim**-0.5)
        self.history = HistoryEmbedding(schema, dim, dim**-0.5)
        self.sequences = [f.name for f in schema.features if isinstance(f, SequenceFeature)]
        self.groups = {f.name: f.columns() for f in schema.features if isinstance(f, GroupFeature)}
        names = [*self.sequences, *(member for members in self.groups.values() for member in members)]
        self.histories = keyed({name: HistoryFields(dim, num_positions) for name in names})
        self.num_fields = self.plain.num_fields + len(names) * (num_positions + 1)

    def forward(self, batch: SessionBatch) -> Tensor:
        fields = [self.plain(batch)]
        for name in self.sequences:
            codes = batch.sequences[name]
            fields.append(self._fields(name, codes, codes != 0))
        for group, members in self.groups.items():
            mask = step_mask(batch, group)
            fields += [self._fields(member, batch.groups[group][member], mask) for member in members]
        return torch.cat(fields, dim=1)

    def _fields(self, name: str, values: Tensor, mask: Tensor) -> Tensor:
        fields: Tensor = self.histories[module_key(name)](self.history(name, values, None), mask)
        return fields


class MixtureOfExperts(nn.Module):
    """Dense experts under a softmax gate, one gate a scenario (or one in all): [B, in] -> [B, expert_hidden[-1]]."""

    def __init__(self, config: BaselineConfig, size_in: int, num_gates: int) -> None:
        super().__init__()
        sizes = (size_in, *config.expert_hidden)
        self.num_gates = num_gates
        self.experts = nn.ModuleList(mlp(sizes, config.dropout) for _ in range(config.num_experts))
        self.gate = nn.Linear(size_in, num_gates * config.num_experts)

    def forward(self, inputs: Tensor, gate: Tensor) -> Tensor:
        """``gate`` [B]: which gate each row uses."""
        logits = self.gate(inputs).unflatten(-1, (self.num_gates, -1))
        chosen = logits[torch.arange(len(inputs), device=inputs.device), gate]
        outputs = torch.stack([expert(inputs) for expert in self.experts], dim=1)
        return torch.einsum("bk,bkd->bd", chosen.softmax(dim=-1), outputs)


class BaselineUserTower(nn.Module):
    """SessionBatch -> z_u [B, d], not normalised."""

    def __init__(self, config: BaselineConfig, schema: FeatureSchema) -> None:
        super().__init__()
        self.fields = UserFields(schema, config.embedding_dim, config.num_positions)
        self.scenario, num_gates = scenario_column(config, schema)
        self.dropout = nn.Dropout(config.dropout)
        self.autoint = autoint(config, config.dropout)
        width = self.fields.num_fields * config.num_heads * config.head_dim
        self.experts = MixtureOfExperts(config, width, num_gates)
        self.out = nn.Linear(config.expert_hidden[-1], config.dim)

    def forward(self, batch: SessionBatch, intent_table: Tensor | None = None) -> Tensor:
        crossed = self.autoint(self.dropout(self.fields(batch))).flatten(1)
        codes = batch.categorical
        gate = codes.new_zeros(len(batch)) if self.scenario is None else codes[:, self.scenario]
        vectors: Tensor = self.out(self.experts(crossed, gate))
        return vectors


def scenario_column(config: BaselineConfig, schema: FeatureSchema) -> tuple[int | None, int]:
    """Column of the scenario in ``SessionBatch.categorical``, and the number of gates."""
    if config.scenario is None:
        return None, 1
    categorical = [f for f in schema.features if isinstance(f, CategoricalFeature)]
    names = [f.name for f in categorical]
    if config.scenario not in names:
        required = f"a categorical feature ({', '.join(names)})"
        raise ConfigError(where="baseline scenario", required=required, received=config.scenario)
    column = names.index(config.scenario)
    return column, schema.vocabulary(categorical[column].vocabulary).size


class BaselineIntentTower(nn.Module):
    """-> [N, d] unit vectors."""

    def __init__(self, config: BaselineConfig, num_intents: int, semantic: Tensor | None) -> None:
        super().__init__()
        self.fields = IntentFields(num_intents, semantic, config.embedding_dim, config.id_dropout)
        self.project = None if semantic is None else nn.Linear(semantic.shape[1], config.embedding_dim)
        self.autoint = autoint(config, 0.0)
        num_fields = 1 if semantic is None else 2
        self.out = nn.Linear(num_fields * config.num_heads * config.head_dim, config.dim)

    def forward(self) -> Tensor:
        fields = [self.fields.ids()]
        texts = self.fields.texts()
        if self.project is not None and texts is not None:
            fields.append(self.project(texts))
        return unit(self.out(self.autoint(torch.stack(fields, dim=1)).flatten(1)))


def build_baseline(
    config: BaselineConfig, schema: FeatureSchema, catalog: IntentCatalog, semantic: Tensor | None
) -> Ranker:
    """``schema`` is bound to ``catalog``."""
    return Ranker(
        BaselineUserTower(config, schema),
        BaselineIntentTower(config, len(catalog), semantic),
        None,
        config.loss,
        len(catalog),
        confidence=confidence_weights(config.confidence, schema, config.dim),
    )
