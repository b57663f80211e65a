"""The configuration files of quantised checkpoints, as the engines that read them document and parse them.

compressed-tensors: vLLM 0.33.0, model_executor/layers/quantization/compressed_tensors, scheme W8A8Int8, dynamic tokens.
hf_quant_config.json: TensorRT-LLM 1.2, _torch/model_config.py, in ModelOpt's form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def plain_dtype(config: Mapping[str, Any]) -> torch.dtype:
    """16 bits, as the engine will compute: the checkpoint's own or bfloat16."""
    return torch.float16 if (config.get("dtype") or config.get("torch_dtype")) == "float16" else torch.bfloat16


def config_of(values: Mapping[str, Any], target: str, dtype: str) -> dict[str, Any]:
    """The model's configuration, in the words of transformers 4 beside those of 5."""
    made = {key: value for key, value in values.items() if key != "quantization_config"}
    name = str(plain_dtype(values)).removeprefix("torch.")
    made |= {"dtype": name, "torch_dtype": name}
    rope = values.get("rope_parameters")
    if rope:
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        made["rope_theta"] = rope["rope_theta"]
        made["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
    if target == "vllm" and dtype == "int8":
        made["quantization_config"] = compressed_tensors_config()
    return made


def compressed_tensors_config() -> dict[str, Any]:
    eight = {"num_bits": 8, "type": "int", "symmetric": True, "group_size": None, "block_structure": None}
    group = {
        "targets": ["Linear"],
        "weights": {**eight, "strategy": "channel", "dynamic": False, "actorder": None},
        "input_activations": {**eight, "strategy": "token", "dynamic": True, "actorder": None},
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def modelopt_config() -> dict[str, Any]:
    quantization = {"quant_algo": "W8A16", "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
    return {"producer": {"name": "rgalign"}, "quantization": quantization}
