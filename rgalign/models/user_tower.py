"""User tower: session features to one vector (paper 3.3, "User Tower").

    v_nonseq  = [embedding of each categorical; w_f x_f + b_f of each number]
    v_seq     = pool(self-attention(sequence))                             each sequence its own encoder
    v_grouped = W [pool(cross_a) for each member a],
                cross_a = LN(member_a + attention(Q = member_a, K = V = [the other members]))
    z_u       = activation(MLP([v_nonseq; v_seq; v_grouped]))

The paper leaves the sizes and the roles in the cross-attention open. Here every member queries the others of its group,
at the same positions and never across groups. The paper's σ after the MLP (``out_activation: sigmoid``) confines all
users to one orthant, where cosines lose half their range; the default output is linear.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from rgalign.config import Config
from rgalign.data.batch import SessionBatch
from rgalign.models.layers import (
    SMALL,
    AgeEmbedding,
    AttentionPool,
    MultiHeadAttention,
    NumberEmbedding,
    NumericEmbedding,
    PackedEmbedding,
    TransformerLayer,
    encode_present,
    keyed,
    learned,
    mlp,
    module_key,
)
from rgalign.schema import INTENTS, CategoricalFeature, FeatureSchema, GroupFeature, NumericalFeature, SequenceFeature

OutActivation = Literal["none", "sigmoid", "gelu"]


class UserTowerConfig(Config):
    """Sizes of the user tower. ``tie_intents``: histories read intents from the intent tower's id table."""

    embedding_dim: int = Field(default=16, gt=0)
    history_dim: int = Field(default=32, gt=0)
    attention_dim: int = Field(default=64, gt=0)
    num_layers: int = Field(default=2, ge=0)
    num_heads: int = Field(default=2, gt=0)
    hidden: tuple[int, ...] = (512, 256)
    out_activation: OutActivation = "none"
    tie_intents: bool = False


class PlainEmbedding(nn.Module):
    """Categorical and numerical features to vectors: [B, Fc + Fn, dim]."""

    def __init__(self, schema: FeatureSchema, dim: int, std: float = SMALL) -> None:
        super().__init__()
        categorical = [f for f in schema.features if isinstance(f, CategoricalFeature)]
        numerical = [f for f in schema.features if isinstance(f, NumericalFeature)]
        self.num_fields = len(categorical) + len(numerical)
        self.categorical = PackedEmbedding([schema.vocabulary(f.vocabulary).size for f in categorical], dim, std)
        self.numerical = NumericEmbedding(len(numerical), dim, std)

    def forward(self, batch: SessionBatch) -> Tensor:
        fields = (self.categorical(batch.categorical), self.numerical(batch.numerical, batch.missing))
        return torch.cat(fields, dim=1)


class HistoryEmbedding(nn.Module):
    """Steps of sequences and groups to vectors of one size; features over one vocabulary share its rows."""

    def __init__(self, schema: FeatureSchema, dim: int, std: float = SMALL, *, tie_intents: bool = False) -> None:
        super().__init__()
        self.tie_intents = tie_intents
        self.vocabularies: dict[str, str] = {}  # sequence or member -> vocabulary
        numbers: dict[str, nn.Module] = {}
        for feature in schema.features:
            if isinstance(feature, SequenceFeature):
                self.vocabularies[feature.name] = feature.vocabulary
            elif isinstance(feature, GroupFeature):
                for member in feature.members:
                    if member.kind == "categorical":
                        self.vocabularies[member.name] = member.vocabulary
                    else:
                        kind = AgeEmbedding if member.name == feature.age else NumberEmbedding
                        numbers[member.name] = kind(dim, std)
        own = sorted({name for name in self.vocabularies.values() if not (tie_intents and name == INTENTS)})
        self.index = {name: position for position, name in enumerate(own)}
        self.codes = PackedEmbedding([schema.vocabulary(name).size for name in own], dim, std)
        self.numbers = keyed(numbers)

    def forward(self, name: str, values: Tensor, intent_table: Tensor | None) -> Tensor:
        """Values [...] of sequence or member ``name`` -> [..., dim]; ``intent_table`` [N + 2, dim] if tied."""
        if name not in self.vocabularies:
            vectors: Tensor = self.numbers[module_key(name)](values)
            return vectors
        vocabulary = self.vocabularies[name]
        if vocabulary in self.index:
            return self.codes.lookup(self.index[vocabulary], values)
        assert intent_table is not None, "tied intents need the intent tower's table"
        return functional.embedding(values, intent_table)


class SequenceEncoder(nn.Module):
    """[n, L, history_dim] steps of one sequence -> [n, attention_dim]."""

    def __init__(self, config: UserTowerConfig, max_length: int, dropout: float) -> None:
        super().__init__()
        dim = config.attention_dim
        self.project = nn.Linear(config.history_dim, dim)
        self.position = learned(max_length, dim)
        self.layers = nn.ModuleList(TransformerLayer(dim, config.num_heads, dropout) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(dim)
        self.pool = AttentionPool(dim)
        self.absent = learned(dim)

    def forward(self, steps: Tensor, mask: Tensor) -> Tensor:
        states = self.project(steps) + self.position[: steps.shape[1]]
        for layer in self.layers:
            states = layer(states, mask)
        result: Tensor = self.pool(self.norm(states), mask)
        return result


class GroupEncoder(nn.Module):
    """M member histories [n, L, history_dim] of one group -> [n, attention_dim]."""

    def __init__(self, config: UserTowerConfig, num_members: int, max_length: int, dropout: float) -> None:
        super().__init__()
        dim, members = config.attention_dim, range(num_members)
        others = max(1, num_members - 1) * dim  # a group of one attends to itself
        self.project = nn.ModuleList(nn.Linear(config.history_dim, dim) for _ in members)
        self.position = learned(max_length, dim)
        self.cross = nn.ModuleList(MultiHeadAttention(dim, config.num_heads, key_dim=others) for _ in members)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.ModuleList(nn.LayerNorm(dim) for _ in members)
        self.pool = nn.ModuleList(AttentionPool(dim) for _ in members)
        self.out = nn.Linear(num_members * dim, dim)
        self.absent = learned(dim)

    def forward(self, members: list[Tensor], mask: Tensor) -> Tensor:
        position = self.position[: mask.shape[1]]
        states = [project(steps) + position for project, steps in zip(self.project, members, strict=True)]
        pooled = []
        for index, (own, cross) in enumerate(zip(states, self.cross, strict=True)):
            others = states[:index] + states[index + 1 :] or [own]
            fused = self.norm[index](own + self.dropout(cross(own, torch.cat(others, dim=-1), mask)))
            pooled.append(self.pool[index](fused, mask))
        result: Tensor = self.out(torch.cat(pooled, dim=-1))
        return result


class UserTower(nn.Module):
    """SessionBatch -> z_u [B, d], not normalised."""

    def __init__(self, config: UserTowerConfig, schema: FeatureSchema, dim: int, dropout: float) -> None:
        super().__init__()
        self.config = config
        self.plain = PlainEmbedding(schema, config.embedding_dim)
        self.history = HistoryEmbedding(schema, config.history_dim, tie_intents=config.tie_intents)
        sequences = [f for f in schema.features if isinstance(f, SequenceFeature)]
        groups = [f for f in schema.features if isinstance(f, GroupFeature)]
        self.members = {group.name: group.columns() for group in groups}
        self.sequences = keyed({f.name: SequenceEncoder(config, f.max_length, dropout) for f in sequences})
        self.groups = keyed({g.name: GroupEncoder(config, len(g.members), g.max_length, dropout) for g in groups})
        self.sequence_names = [f.name for f in sequences]
        width = self.plain.num_fields * config.embedding_dim
        width += (len(sequences) + len(groups)) * config.attention_dim
        self.dropout = nn.Dropout(dropout)
        self.mlp = mlp((width, *config.hidden, dim), dropout, last=True)

    def forward(self, batch: SessionBatch, intent_table: Tensor | None = None) -> Tensor:
        views = [self.plain(batch).flatten(1)]
        views += [self._sequence(name, batch, intent_table) for name in self.sequence_names]
        views += [self._group(name, batch, intent_table) for name in self.members]
        return activate(self.mlp(self.dropout(torch.cat(views, dim=-1))), self.config.out_activation)

    def _sequence(self, name: str, batch: SessionBatch, intent_table: Tensor | None) -> Tensor:
        encoder, codes = self.sequences[module_key(name)], batch.sequences[name]

        def encode(rows: Tensor, mask: Tensor) -> Tensor:
            vectors: Tensor = encoder(self.history(name, codes[rows], intent_table), mask)
            return vectors

        return encode_present(codes != 0, encoder.absent, encode)  # type: ignore[arg-type]

    def _group(self, name: str, batch: SessionBatch, intent_table: Tensor | None) -> Tensor:
        encoder, values = self.groups[module_key(name)], batch.groups[name]

        def encode(rows: Tensor, mask: Tensor) -> Tensor:
            steps = [self.history(member, values[member][rows], intent_table) for member in self.members[name]]
            vectors: Tensor = encoder(steps, mask)
            return vectors

        return encode_present(step_mask(batch, name), encoder.absent, encode)  # type: ignore[arg-type]


def step_mask(batch: SessionBatch, group: str) -> Tensor:
    """[B, L] bool, True for the steps of a group that are not padding."""
    lengths = batch.group_lengths[group]
    width = next(iter(batch.groups[group].values())).shape[1]
    return torch.arange(width, device=lengths.device) < lengths.unsqueeze(-1)


def activate(vectors: Tensor, activation: OutActivation) -> Tensor:
    if activation == "sigmoid":
        return vectors.sigmoid()
    return functional.gelu(vectors) if activation == "gelu" else vectors
