"""Token ids to the state after the final norm at each sequence's last token: the decoder, as kernels of a GPU.

    residual [T, D] float32;  norm -> qkv -> qk-norm, rotation -> attention over [prefix; own] -> out  (added)
                              norm -> gate, up -> SwiGLU -> down                                       (added)

Every norm, SwiGLU and rotation quantises or writes what the next product reads. The last layer computes keys and values
of all tokens and the rest for last tokens only; there is no LM head. On CPU tensors every operation is its definition,
or its kernel in Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rgalign.kernels.add_norm_quantize import add_norm
from rgalign.kernels.int8_gemm import workspace_size
from rgalign.kernels.int8_gemm_plan import tile_on
from rgalign.kernels.prefix_attention import prefix_attention
from rgalign.kernels.qk_norm_rope import qk_norm_rope
from rgalign.reasoner.engine.cuda.matrix import Matrix, Rows, as_rows, gated, multiply, multiply_add, normed
from rgalign.reasoner.engine.cuda.pack import Heads, Parts
from rgalign.reasoner.engine.decoder_config import DecoderConfig


@dataclass(frozen=True)
class Layer:
    """float32 norms [n]; ``qkv`` has queries, keys and values in turn, ``gate_up`` is interleaved by LAYOUT."""

    input_norm: Tensor
    post_norm: Tensor
    query_norm: Tensor | None
    key_norm: Tensor | None
    qkv: Matrix
    out: Matrix
    gate_up: Matrix
    down: Matrix


@dataclass(frozen=True)
class Decoder:
    """Args:
    embed: [V, D] of a float dtype; final_norm: [D] float32; cosines, sines: [P, head_dim / 2] float32.
    state_shift: [D] float32 to subtract from the states, of the engine's directory.
    workspace: int32 zeros for split products, :meth:`workspace_for` many; made at a product where they are too few.
    """

    config: DecoderConfig
    embed: Tensor
    final_norm: Tensor
    cosines: Tensor
    sines: Tensor
    layers: tuple[Layer, ...]
    state_shift: Tensor | None = None
    workspace: Tensor | None = None

    @property
    def heads(self) -> Heads:
        return Heads(self.config.num_heads, self.config.num_kv_heads)

    @property
    def device(self) -> torch.device:
        return self.embed.device

    @cached_property
    def operand(self) -> torch.dtype:
        """Of products' operands."""
        return self.layers[0].qkv.weight.dtype

    @property
    def dtype(self) -> torch.dtype:
        """Of queries, keys, values and SwiGLU's input."""
        return torch.float32 if self.operand == torch.float32 else torch.bfloat16

    @property
    def query_columns(self) -> int:
        return self.config.num_heads * self.config.head_dim

    @property
    def num_bytes(self) -> int:
        tensors = [self.embed, self.final_norm, self.cosines, self.sines]
        for layer in self.layers:
            for value in vars(layer).values():
                tensors += [value] if isinstance(value, Tensor) else list(vars(value).values()) if value else []
        return sum(each.numel() * each.element_size() for each in tensors if each is not None)

    def workspace_for(self, tokens: int) -> int:
        """int32 values that a forward of as many tokens wants for its split products."""
        if self.operand != torch.int8:
            return 0
        layer = self.layers[0]
        only_keys = layer.qkv.part(self.query_columns, len(layer.qkv.weight))  # of the last layer
        matrices = (layer.qkv, layer.out, layer.gate_up, layer.down, only_keys)
        shapes = [matrix.weight.shape for matrix in matrices]
        splits = [(tile_on(self.device, tokens, n, k).num_splits, n) for n, k in shapes]
        return max(workspace_size(count, tokens, n) if count > 1 else 0 for count, n in splits)

    @torch.no_grad()
    def forward(self, pack: Parts, prefix: Tensor | None = None) -> Tensor:
        """[S, D] float32.

        Args:
            prefix: [num_layers, P, 2 KV heads head_dim] of :meth:`keys_and_values`; positions in ``pack`` begin at P.
        """
        residual, delta = self._embedded(pack), None
        for index, layer in enumerate(self.layers[:-1]):
            delta = self._layer(layer, residual, delta, pack, None if prefix is None else prefix[index])
        return self._last_layer(self.layers[-1], residual, delta, pack, None if prefix is None else prefix[-1])

    @torch.no_grad()
    def keys_and_values(self, pack: Parts) -> Tensor:
        """[num_layers, T, 2 KV heads head_dim]: keys, then values, of the one sequence in ``pack``."""
        c = self.config
        width = 2 * c.num_kv_heads * c.head_dim
        found = torch.empty(c.num_layers, len(pack.token_ids), width, dtype=self.dtype, device=self.device)
        residual, delta = self._embedded(pack), None
        for index, layer in enumerate(self.layers[:-1]):
            delta = self._layer(layer, residual, delta, pack, None, keep=found[index].copy_)
        last = self.layers[-1]
        x = normed(residual, delta, last.input_norm, c.eps, self.operand)
        found[-1].copy_(self._keys_and_values(last, x, pack))
        return found

    def _embedded(self, pack: Parts) -> Tensor:
        return torch.nn.functional.embedding(pack.token_ids, self.embed).float()

    def _layer(
        self,
        layer: Layer,
        residual: Tensor,
        delta: Tensor | None,
        pack: Parts,
        prefix: Tensor | None,
        keep: Callable[[Tensor], object] | None = None,
    ) -> Tensor | None:
        c = self.config
        x = normed(residual, delta, layer.input_norm, c.eps, self.operand)
        qkv = multiply(x, layer.qkv, self.dtype, self.workspace)
        self._rotate(layer, qkv, pack.positions, c.num_heads, c.num_kv_heads)
        q, kv = qkv[:, : self.query_columns], qkv[:, self.query_columns :]
        if keep is not None:
            keep(kv)
        attended = self._attention(q, kv, prefix, pack.cu_seqlens, pack, one_token=False)
        return self._rest(layer, residual, attended)

    def _last_layer(
        self, layer: Layer, residual: Tensor, delta: Tensor | None, pack: Parts, prefix: Tensor | None
    ) -> Tensor:
        x = normed(residual, delta, layer.input_norm, self.config.eps, self.operand)
        kv = self._keys_and_values(layer, x, pack)
        residual, x = residual.index_select(0, pack.last), x.at(pack.last)
        q = multiply(x, layer.qkv.part(0, self.query_columns), self.dtype, self.workspace)
        self._rotate(layer, q, pack.positions.index_select(0, pack.last), self.config.num_heads, 0)
        attended = self._attention(q, kv, prefix, pack.each, pack, one_token=True)
        delta = self._rest(layer, residual, attended)
        states = add_norm(residual, delta, self.final_norm, self.config.eps, torch.float32)
        return states if self.state_shift is None else states - self.state_shift

    def _keys_and_values(self, layer: Layer, x: Rows, pack: Parts) -> Tensor:
        keys = layer.qkv.part(self.query_columns, len(layer.qkv.weight))
        kv = multiply(x, keys, self.dtype, self.workspace)
        self._rotate(layer, kv, pack.positions, 0, self.config.num_kv_heads)
        return kv

    def _rotate(self, layer: Layer, x: Tensor, positions: Tensor, num_heads: int, num_kv_heads: int) -> None:
        norms = layer.query_norm, layer.key_norm
        qk_norm_rope(x, positions, self.cosines, self.sines, *norms, self.config.eps, num_heads, num_kv_heads)

    def _attention(
        self, q: Tensor, kv: Tensor, prefix: Tensor | None, queries: Tensor, pack: Parts, *, one_token: bool
    ) -> Tensor:
        tiles = pack.last_tiles if one_token else pack.tiles
        block_m = self.heads.block_m(one_token)
        c = self.config
        return prefix_attention(q, kv, prefix, queries, pack.cu_seqlens, tiles, c.num_heads, c.num_kv_heads, block_m)

    def _rest(self, layer: Layer, residual: Tensor, attended: Tensor) -> Tensor | None:
        """Output projection and MLP."""
        delta = multiply_add(residual, as_rows(attended, self.operand), layer.out, self.workspace)
        x = normed(residual, delta, layer.post_norm, self.config.eps, self.operand)
        gate_up = multiply(x, layer.gate_up, self.dtype, self.workspace)
        return multiply_add(residual, gated(gate_up, self.operand), layer.down, self.workspace)


def rotations(inverse_frequencies: Tensor, num_positions: int) -> tuple[Tensor, Tensor]:
    """[P, head_dim / 2] cosines and sines, float32."""
    positions = torch.arange(num_positions, device=inverse_frequencies.device, dtype=torch.float32)
    angles = torch.outer(positions, inverse_frequencies.float())
    return angles.cos(), angles.sin()
