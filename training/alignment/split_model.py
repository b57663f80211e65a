"""A decoder cut in two: ``upper(lower(tokens))`` is the whole, each part a Hugging Face model of its own.

    lower   token embeddings, layers 0 .. k-1, no norm
    upper   layers k .. n-1 (copies, free to train), final norm, LM head; read through ``inputs_embeds``

Position ids, causal mask and rotary angles are those of the whole, since both parts are the whole's own class.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from rgalign.errors import ConfigError
from rgalign.training.alignment.shared_prefix import share_prefix

PARTS = ("embed_tokens", "layers", "norm", "rotary_emb")


def lower_part(model: Any, num_layers: int) -> Any:
    """The first ``num_layers`` layers, shared with ``model``.

    Raises:
        ConfigError: a decoder without the parts of the Llama and Qwen families, or too few layers to cut.
    """
    _check(model, num_layers)
    part, source = _shell(model, 0, num_layers), model.get_decoder()
    decoder = part.get_decoder()
    decoder.embed_tokens = source.embed_tokens
    decoder.layers = nn.ModuleList(source.layers[:num_layers])
    decoder.norm = nn.Identity()
    return part.eval()


def upper_part(model: Any, num_lower: int, states: nn.Module) -> Any:
    """The layers above ``num_lower``, copied.

    Args:
        states: token ids [B, T] -> lower states [B, T, D]; takes the embeddings' place.
    """
    _check(model, num_lower)
    part, source = _shell(model, num_lower, len(model.get_decoder().layers)), model.get_decoder()
    decoder = part.get_decoder()
    decoder.embed_tokens = states
    decoder.layers = nn.ModuleList(copy.deepcopy(layer) for layer in source.layers[num_lower:])
    for number, layer in enumerate(decoder.layers):  # its place in the key-value cache
        layer.self_attn.layer_idx = number
    decoder.norm = copy.deepcopy(source.norm)
    part.set_output_embeddings(model.get_output_embeddings())
    share_prefix(decoder)
    part.requires_grad_(False)
    for module in (decoder.layers, decoder.norm):
        module.requires_grad_(True)
    return part.eval()


def put_back(upper: Any, model: Any, num_lower: int) -> None:
    """Copies trained weights of ``upper`` into ``model``."""
    trained, whole = upper.get_decoder(), model.get_decoder()
    with torch.no_grad():
        for number, layer in enumerate(trained.layers):
            whole.layers[num_lower + number].load_state_dict(layer.state_dict())
        whole.norm.load_state_dict(trained.norm.state_dict())


def lower_tensors(model: Any, num_layers: int) -> dict[str, Tensor]:
    """What the states below layer ``num_layers`` depend on."""
    decoder = model.get_decoder()
    tensors = {f"embed_tokens.{name}": value for name, value in decoder.embed_tokens.state_dict().items()}
    tensors |= {f"layers.{name}": value for name, value in decoder.layers[:num_layers].state_dict().items()}
    return tensors


def _check(model: Any, num_lower: int) -> None:
    decoder = model.get_decoder()
    absent = [name for name in PARTS if not hasattr(decoder, name)]
    if absent:
        required = f"a decoder with {', '.join(PARTS)} (Llama, SmolLM2, Qwen2.5, Qwen3)"
        raise ConfigError(where="tuning: upper", required=required, received=f"{type(decoder).__name__}")
    if not 0 < num_lower < len(decoder.layers):
        required = f"1 to {len(decoder.layers) - 1} upper layers of {len(decoder.layers)}"
        raise ConfigError(where="upper_layers", required=required, received=str(len(decoder.layers) - num_lower))


def _shell(model: Any, start: int, stop: int) -> Any:
    """The model's class with layers ``start`` to ``stop`` in its configuration, and nothing allocated."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = stop - start
    config.tie_word_embeddings = False
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = list(model.config.layer_types[start:stop])
    with torch.device("meta"):
        part = type(model)(config)
    part.generation_config = copy.deepcopy(model.generation_config)
    part.get_decoder().rotary_emb = model.get_decoder().rotary_emb
    return part
