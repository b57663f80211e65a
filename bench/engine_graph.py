"""A Llama decoder as one ONNX graph with a cached prefix, which ONNX Runtime and OpenVINO both read.

    ids, positions [B, T], last [B, 1], past_key.i and past_value.i [B, KV heads, P, head_dim]  ->  states [B, H]

Attention, rotary embedding and RMSNorm are single operators (opset 23), so that a runtime need not find them again;
projections are separate, as exporters leave them. There is no LM head; the state is taken at each row's last token, so
padding behind it is never seen. Nothing is pruned: that is what these runtimes would be given.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from rgalign.errors import ConfigError
from rgalign.files import atomic_path

OPSET = 23
IR_VERSION = 11
MAX_POSITIONS = 1_024  # of the tables of cosines and sines


def write_graph(model: Any, path: Path) -> None:
    """Writes the graph of a transformers Llama in float32.

    Raises:
        ConfigError: another family, or one with biases, a norm of queries or scaled rotations.
    """
    import onnx

    with atomic_path(path) as temporary:
        onnx.save(Graph(model).proto(), temporary)


class Graph:
    """Nodes and weights as they are added; every method returns the name of a result."""

    def __init__(self, model: Any) -> None:
        self.config = model.config
        self.decoder = model.get_decoder()
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        kind = self.config.model_type
        biases = [name for name, _ in self.decoder.named_parameters() if name.endswith("bias")]
        scaling = self.decoder.rotary_emb.attention_scaling
        if kind != "llama" or biases or scaling != 1.0:
            received = f"{kind}, {len(biases)} biases, rotations scaled by {scaling}"
            raise ConfigError(where="engine peers", required="a Llama without biases", received=received)

    def proto(self) -> Any:
        from onnx import TensorProto, helper

        config = self.config
        angles = torch.arange(MAX_POSITIONS)[:, None].float() * self.decoder.rotary_emb.inv_freq.float()
        self.weight("cosines", angles.cos())
        self.weight("sines", angles.sin())
        x = self.node("Gather", "x", self.weight("embed", self.decoder.embed_tokens.weight), "ids")
        for index, layer in enumerate(self.decoder.layers):
            x = self.layer(index, layer, x)
        last = self.node("GatherND", "last_state", x, "last", batch_dims=1)
        self.norm("states", self.decoder.norm, last)

        past = ["B", config.num_key_value_heads, "P", config.head_dim]
        integers = {"ids": ["B", "T"], "positions": ["B", "T"], "last": ["B", 1]}
        inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in integers.items()]
        inputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, past) for n in past_names(config)]
        outputs = [helper.make_tensor_value_info("states", TensorProto.FLOAT, ["B", config.hidden_size])]
        graph = helper.make_graph(self.nodes, "prefill", inputs, outputs, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)

    def layer(self, index: int, layer: Any, x: str) -> str:
        attention, mlp, name = layer.self_attn, layer.mlp, f"layer{index}."
        heads = {"q": self.config.num_attention_heads, "k": self.config.num_key_value_heads}
        y = self.norm(name + "y", layer.input_layernorm, x)
        q, k = (
            self.node("RotaryEmbedding", f"{name}{which}_rotated",
                      self.linear(name + which, getattr(attention, f"{which}_proj"), y),
                      "cosines", "sines", "positions", num_heads=heads[which])
            for which in ("q", "k")
        )  # fmt: skip
        v = self.linear(name + "v", attention.v_proj, y)
        attended = self.node("Attention", name + "attended", q, k, v, "", f"past_key.{index}", f"past_value.{index}",
                             more=(name + "key", name + "value"), is_causal=1,
                             q_num_heads=heads["q"], kv_num_heads=heads["k"])  # fmt: skip
        x = self.node("Add", name + "x", x, self.linear(name + "out", attention.o_proj, attended))
        y = self.norm(name + "z", layer.post_attention_layernorm, x)
        gate = self.linear(name + "gate", mlp.gate_proj, y)
        silu = self.node("Mul", name + "silu", gate, self.node("Sigmoid", name + "sigmoid", gate))
        gated = self.node("Mul", name + "gated", silu, self.linear(name + "up", mlp.up_proj, y))
        return self.node("Add", name + "end", x, self.linear(name + "down", mlp.down_proj, gated))

    def linear(self, name: str, module: Any, x: str) -> str:
        return self.node("MatMul", name, x, self.weight(name + ".weight", module.weight.T))

    def norm(self, name: str, module: Any, x: str) -> str:
        epsilon = self.config.rms_norm_eps
        return self.node("RMSNormalization", name, x, self.weight(name + ".weight", module.weight), epsilon=epsilon)

    def node(self, kind: str, name: str, *inputs: str, more: tuple[str, ...] = (), **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, list(inputs), [name, *more], name=name, **attributes))
        return name

    def weight(self, name: str, values: torch.Tensor) -> str:
        from onnx import numpy_helper

        array = np.ascontiguousarray(values.detach().float().numpy())
        self.weights.append(numpy_helper.from_array(array, name))
        return name


def past_names(config: Any) -> list[str]:
    """Of the inputs that hold the prefix, in order."""
    return [f"past_{what}.{index}" for index in range(config.num_hidden_layers) for what in ("key", "value")]
