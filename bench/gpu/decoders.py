"""Decoders with random weights, the same values in each type, and the plain forward that ours is compared with.

A forward's time does not depend on its weights, but for the power that they draw; every row says that they are random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from rgalign.reasoner.engine.cuda.decoder import Decoder, Layer, rotations
from rgalign.reasoner.engine.cuda.matrix import CudaDtype, matrix_of
from rgalign.reasoner.engine.decoder_config import LAYOUT, DecoderConfig

QWEN3_4B = DecoderConfig(
    num_layers=36,
    hidden=2560,
    intermediate=9728,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    eps=1e-6,
    rope_scale=1.0,
    qk_norm=True,
    vocabulary=151_936,
    max_positions=4_096,
)
TINY = DecoderConfig(2, 64, 64, 2, 1, 32, 1e-6, 1.0, True, 256, 512)
ROPE_BASE = 1e6
KeyValue = tuple[Tensor, Tensor]  # [1 or B, KV heads, P, head_dim] each


class Weights(NamedTuple):
    """Of one layer, as transformers keeps them."""

    input_norm: Tensor
    post_norm: Tensor
    query_norm: Tensor
    key_norm: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


@dataclass(frozen=True)
class Ends:
    """What stands before and behind the layers."""

    embed: Tensor  # [V, D] bfloat16
    final_norm: Tensor
    cosines: Tensor  # [P, head_dim / 2] float32
    sines: Tensor


def random_weights(config: DecoderConfig, index: int, device: str) -> Weights:
    """bfloat16; a layer's index is its seed."""
    g = torch.Generator(device).manual_seed(1 + index)

    def norm(size: int) -> Tensor:
        return (1 + torch.randn(size, device=device, generator=g) / 8).to(torch.bfloat16)

    def matrix(rows: int, columns: int) -> Tensor:
        values = torch.randn(rows, columns, device=device, generator=g)
        return values.mul_(columns**-0.5).to(torch.bfloat16)

    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return Weights(
        norm(config.hidden),
        norm(config.hidden),
        norm(config.head_dim),
        norm(config.head_dim),
        matrix(queries, config.hidden),
        matrix(keys, config.hidden),
        matrix(keys, config.hidden),
        matrix(config.hidden, queries),
        matrix(config.intermediate, config.hidden),
        matrix(config.intermediate, config.hidden),
        matrix(config.hidden, config.intermediate),
    )


def random_ends(config: DecoderConfig, device: str) -> Ends:
    g = torch.Generator(device).manual_seed(0)
    embed = torch.randn(config.vocabulary, config.hidden, device=device, generator=g, dtype=torch.bfloat16)
    steps = torch.arange(0, config.head_dim, 2, device=device, dtype=torch.float32) / config.head_dim
    return Ends(embed, torch.ones(config.hidden, device=device), *rotations(ROPE_BASE**-steps, config.max_positions))


def engine_decoder(config: DecoderConfig, ends: Ends, dtype: CudaDtype) -> Decoder:
    """Ours, of :func:`random_weights`."""

    def layer(index: int) -> Layer:
        w = random_weights(config, index, str(ends.embed.device))
        gate_up = torch.stack([each.view(-1, LAYOUT, config.hidden) for each in (w.gate, w.up)], dim=1).flatten(0, 2)
        qkv, out, gated, down = (
            matrix_of(each, None, dtype) for each in (torch.cat([w.q, w.k, w.v]), w.out, gate_up, w.down)
        )
        norms = (w.input_norm.float(), w.post_norm.float(), w.query_norm.float(), w.key_norm.float())
        return Layer(*norms, qkv, out, gated, down)

    layers = tuple(layer(index) for index in range(config.num_layers))
    return Decoder(config, ends.embed, ends.final_norm, ends.cosines, ends.sines, layers)


class PlainDecoder:
    """The decoder in torch operations, one after the other, as transformers has it: the benchmark's baseline.

    Separate projections, norms through float32, the residual stream in the weights' type, SDPA; keys and values of a
    prefix are put before every row's own. Padded batches, all layers for all tokens, no LM head.

    Args:
        compiled: each layer through torch.compile, for the shapes of the next call.
    """

    def __init__(self, config: DecoderConfig, ends: Ends, dtype: torch.dtype, *, compiled: bool = False) -> None:
        self.config, self.ends, self.dtype = config, ends, dtype
        device = str(ends.embed.device)
        self.layers = [
            Weights(*(each.to(dtype) for each in random_weights(config, index, device)))
            for index in range(config.num_layers)
        ]
        self.layer: Callable[..., tuple[Tensor, KeyValue]] = plain_layer
        if compiled:
            self.compile()

    def compile(self) -> None:
        torch._dynamo.reset()
        self.layer = torch.compile(plain_layer, dynamic=False)

    def prefix(self, token_ids: Tensor) -> list[KeyValue]:
        """Of each layer. Args: token_ids: [P]."""
        cache: list[KeyValue] = []
        self._forward(token_ids[None], None, cache.append)
        return cache

    @torch.no_grad()
    def forward(self, token_ids: Tensor, cache: list[KeyValue] | None = None) -> Tensor:
        """[B, D] states at the last token of each row. Args: token_ids: [B, L]."""
        return self._forward(token_ids, cache, lambda own: None)[:, -1]

    @torch.no_grad()
    def _forward(self, token_ids: Tensor, cache: list[KeyValue] | None, keep: Callable[[KeyValue], Any]) -> Tensor:
        before, length = (0 if cache is None else cache[0][0].shape[2]), token_ids.shape[1]
        x = functional.embedding(token_ids, self.ends.embed).to(self.dtype)
        here = slice(before, before + length)
        tables = (self.ends.cosines, self.ends.sines)
        cosines, sines = (torch.cat([each[here]] * 2, dim=1).to(self.dtype) for each in tables)
        for index, weights in enumerate(self.layers):
            x, own = self.layer(x, weights, cosines, sines, None if cache is None else cache[index], self.config)
            keep(own)
        return plain_norm(x, self.ends.final_norm.to(self.dtype), self.config.eps)


def plain_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    y = x.float()
    return weight * (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def plain_rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return x * cosines + torch.cat([-high, low], dim=-1) * sines


def plain_layer(
    x: Tensor, w: Weights, cosines: Tensor, sines: Tensor, past: KeyValue | None, config: DecoderConfig
) -> tuple[Tensor, KeyValue]:
    """[B, L, D] and this layer's own keys and values."""
    batch, length, _ = x.shape

    def heads(y: Tensor) -> Tensor:
        return y.view(batch, length, -1, config.head_dim)

    y = plain_norm(x, w.input_norm, config.eps)
    q = plain_norm(heads(functional.linear(y, w.q)), w.query_norm, config.eps).transpose(1, 2)
    k = plain_norm(heads(functional.linear(y, w.k)), w.key_norm, config.eps).transpose(1, 2)
    v = heads(functional.linear(y, w.v)).transpose(1, 2)
    q, k = plain_rotate(q, cosines, sines), plain_rotate(k, cosines, sines)
    own = (k, v)
    if past is None:
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    else:
        k, v = (torch.cat([old.expand(batch, -1, -1, -1), new], dim=2) for old, new in zip(past, own, strict=True))
        # With a mask, SDPA has no fused kernel for grouped heads: transformers repeats keys and values, and so do we.
        group = config.num_heads // config.num_kv_heads
        k, v = (each.repeat_interleave(group, dim=1) for each in (k, v))
        mask = torch.ones(length, k.shape[2], dtype=torch.bool, device=x.device).tril(k.shape[2] - length)
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    x = x + functional.linear(attended.transpose(1, 2).reshape(batch, length, -1), w.out)
    y = plain_norm(x, w.post_norm, config.eps)
    gated = functional.silu(functional.linear(y, w.gate)) * functional.linear(y, w.up)
    return x + functional.linear(gated, w.down), own
