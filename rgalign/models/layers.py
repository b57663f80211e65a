"""Layers the towers share: packed embedding tables, history encoders, feature crosses, unit vectors.

    unit(x)        x / max(|x|, eps); the zero vector stays zero
    cross          x_{l+1} = x_0 * (W_l x_l + b_l) + x_l                              DCN-V2, Wang et al. 2021, eq. 1
    attention pool sum_t softmax_t(v . tanh(W h_t)) h_t over the steps that are not padding

Histories are encoded only for the rows that have one; the others get a learned "no history" vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

EPS = 1e-6
SMALL = 0.05  # initial deviation of embeddings: values that are seen rarely stay near zero


def unit(vectors: Tensor) -> Tensor:
    """[..., d] -> unit vectors in float32; a zero vector stays zero and has a finite gradient."""
    return functional.normalize(vectors.float(), dim=-1, eps=EPS)


def learned(*shape: int, std: float = SMALL) -> nn.Parameter:
    """A free vector or matrix."""
    return nn.Parameter(torch.randn(shape) * std)


class PackedEmbedding(nn.Module):
    """Several vocabularies in one table, told apart by offsets: one gather for all categoricals of a batch.

    Args:
        sizes: rows of each vocabulary; row 0 (missing) is learned like any other value.
        dim: d_e.
        std: of the initial values.
    """

    offsets: Tensor

    def __init__(self, sizes: Sequence[int], dim: int, std: float = SMALL) -> None:
        super().__init__()
        starts = torch.tensor([0, *sizes], dtype=torch.int64).cumsum(0)
        self.register_buffer("offsets", starts[:-1], persistent=False)
        self.table = nn.Embedding(max(1, int(starts[-1])), dim)
        nn.init.normal_(self.table.weight, std=std)

    def forward(self, codes: Tensor) -> Tensor:
        """[B, F] codes, one column a vocabulary -> [B, F, d_e]."""
        result: Tensor = self.table(codes + self.offsets)
        return result

    def lookup(self, index: int, codes: Tensor) -> Tensor:
        """Codes [...] of vocabulary ``index`` -> [..., d_e]."""
        result: Tensor = self.table(codes + self.offsets[index])
        return result


class NumericEmbedding(nn.Module):
    """Each number to a vector: w_f x + b_f, or a learned vector where it is missing. [B, Fn] -> [B, Fn, d_e]."""

    def __init__(self, num_features: int, dim: int, std: float = SMALL) -> None:
        super().__init__()
        self.weight = learned(num_features, dim, std=std)
        self.bias = learned(num_features, dim, std=std)
        self.absent = learned(num_features, dim, std=std)

    def forward(self, values: Tensor, missing: Tensor) -> Tensor:
        present = values.unsqueeze(-1) * self.weight + self.bias
        return torch.where(missing.unsqueeze(-1), self.absent, present)


# Edges between "the same call", "today", "this week" and so on. Resolved finer near zero, where the next contact is a
# different one (a second request in one call) than a week later.
AGE_EDGES_HOURS = (0.1, 0.5, 2.0, 6.0, 12.0, 24.0, 36.0, 84.0, 180.0, 348.0, 720.0, 1440.0, 2880.0, 8760.0)
AGE_BUCKETS = len(AGE_EDGES_HOURS) + 2  # and one for a missing age


def age_bucket(hours: Tensor) -> Tensor:
    """Hours [...] -> int64 in [0, AGE_BUCKETS); 0 where NaN."""
    edges = torch.tensor(AGE_EDGES_HOURS, device=hours.device, dtype=hours.dtype)
    return torch.where(hours.isnan(), 0, torch.bucketize(hours.nan_to_num(), edges, right=True) + 1)


class AgeEmbedding(nn.Module):
    """Hours ago to a vector: bucket embedding plus a linear in log1p(hours). [...] -> [..., d_e]."""

    def __init__(self, dim: int, std: float = SMALL) -> None:
        super().__init__()
        self.buckets = nn.Embedding(AGE_BUCKETS, dim)
        nn.init.normal_(self.buckets.weight, std=std)
        self.slope = learned(dim, std=std)

    def forward(self, hours: Tensor) -> Tensor:
        # log1p(hours) / 10 is about 1 for two years: the scale of the other inputs.
        result: Tensor = (
            self.buckets(age_bucket(hours)) + torch.log1p(hours.nan_to_num()).unsqueeze(-1) / 10 * self.slope
        )
        return result


class NumberEmbedding(nn.Module):
    """A standardised number inside a history to a vector, NaN to a learned one. [...] -> [..., d_e]."""

    def __init__(self, dim: int, std: float = SMALL) -> None:
        super().__init__()
        self.embedding = NumericEmbedding(1, dim, std)

    def forward(self, values: Tensor) -> Tensor:
        flat = values.reshape(-1, 1)
        result: Tensor = self.embedding(flat.nan_to_num(), flat.isnan()).reshape(*values.shape, -1)
        return result


class MultiHeadAttention(nn.Module):
    """Attention of queries [B, L, dim] over keys [B, L, key_dim] at unmasked positions ``mask`` [B, L]."""

    def __init__(self, dim: int, num_heads: int, key_dim: int | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim if key_dim is None else key_dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        query = self._heads(self.query(queries))
        key, value = (self._heads(part) for part in self.key_value(keys).chunk(2, dim=-1))
        # No dropout on the weights: it would rule out the fused kernel, and the branch's output has its own.
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result

    def _heads(self, states: Tensor) -> Tensor:
        """[B, L, dim] -> [B, H, L, head_dim]."""
        return states.view(*states.shape[:-1], self.num_heads, -1).transpose(1, 2)


class TransformerLayer(nn.Module):
    """Pre-LN, bidirectional: x + attention(LN x), then x + MLP(LN x)."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, num_heads)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        normed = self.norm1(states)
        states = states + self.dropout(self.attention(normed, normed, mask))
        result: Tensor = states + self.dropout(self.mlp(self.norm2(states)))
        return result


class AttentionPool(nn.Module):
    """[B, L, dim] -> [B, dim]: softmax-weighted mean of the unmasked steps; every row needs one."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, dim)
        self.score = nn.Linear(dim, 1, bias=False)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        logits = self.score(torch.tanh(self.hidden(states))).squeeze(-1).float()
        weights = logits.masked_fill(~mask, -torch.inf).softmax(dim=-1)
        return torch.einsum("bl,bld->bd", weights.to(states.dtype), states)


def encode_present(mask: Tensor, absent: Tensor, encode: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Runs ``encode(rows, mask of those rows)`` on rows with at least one step; the others get ``absent``.

    Most sessions have no history: skipping them is the larger part of the tower's speed. While gradients are taken one
    row is encoded even if none has a history, so that every parameter takes part in every step, as DDP requires.

    Args:
        mask: [B, L] bool, True where there is a step.
        absent: [d], learned.

    Returns:
        [B, d].
    """
    present = mask.any(dim=1)
    rows = present.nonzero().squeeze(-1)
    if not len(rows):
        if not torch.is_grad_enabled():
            return absent.expand(len(mask), -1)
        rows = rows.new_zeros(1)
    attended = mask[rows]
    attended[:, 0] |= ~present[rows]  # the stand-in row looks at one padding step; its result is not used
    encoded = encode(rows, attended)
    absent = absent.to(encoded.dtype)
    kept = torch.where(present[rows].unsqueeze(-1), encoded, absent)
    return absent.expand(len(mask), -1).index_copy(0, rows, kept)


class CrossNetwork(nn.Module):
    """DCN-V2 crosses with full or low-rank weights: x0 * (W x + b) + x, ``num_layers`` times. [N, dim] -> [N, dim]."""

    def __init__(self, dim: int, num_layers: int, rank: int | None = None) -> None:
        super().__init__()

        def weight() -> nn.Module:
            if rank is None:
                return nn.Linear(dim, dim)
            return nn.Sequential(nn.Linear(dim, rank, bias=False), nn.Linear(rank, dim))

        self.layers = nn.ModuleList(weight() for _ in range(num_layers))

    def forward(self, x0: Tensor) -> Tensor:
        x = x0
        for layer in self.layers:
            x = x0 * layer(x) + x
        return x


def mlp(sizes: Sequence[int], dropout: float, *, last: bool = False) -> nn.Sequential:
    """Linear -> LayerNorm -> GELU -> dropout for each pair of sizes; with ``last`` the final Linear stands alone."""
    layers: list[nn.Module] = []
    for index, (size_in, size_out) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(size_in, size_out))
        if not (last and index == len(sizes) - 2):
            layers += [nn.LayerNorm(size_out), nn.GELU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def keyed(modules: Mapping[str, nn.Module]) -> nn.ModuleDict:
    """A ModuleDict whose keys may hold dots: feature names are the user's."""
    return nn.ModuleDict({module_key(name): module for name, module in modules.items()})


def module_key(name: str) -> str:
    # torch refuses dots and names of nn.Module attributes ("type", "train") as keys.
    return "f_" + name.replace(".", "·")
