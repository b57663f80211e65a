"""What the adapters of other engines share: versions they were made for, prompts that fit, answers that are states.

Another engine answers requests, not arrays: it may drop a row, return another width (a projection, logits) or NaN (a
wrong scale). Each of these is an error here and not a ranking that is slightly wrong.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rgalign.errors import ConfigError, DataError, RgalignError
from rgalign.files import read_json
from rgalign.reasoner.engine.checkpoint import checkpoint_directory
from rgalign.reasoner.prefix_tree import TokenIds

Version = tuple[int, int]
OUT_OF_MEMORY = re.compile(r"out of memory|no available memory|memory for the cache|insufficient memory", re.IGNORECASE)


class EngineUnavailableError(RgalignError, ImportError):
    """Another engine (vLLM, TensorRT-LLM) is not installed here, or in a version that its adapter was not made for."""


class EngineError(RgalignError, RuntimeError):
    """Another engine did not start, ran out of memory, or answered with something that is no latent query."""


def is_installed(package: str) -> bool:
    """Whether it can be imported; nothing is imported to find out."""
    return importlib.util.find_spec(package) is not None


def load_package(package: str, *, least: Version, below: Version, install: str) -> tuple[Any, str]:
    """The imported package and its version.

    Raises:
        EngineUnavailableError: it is not there, does not load, or its version is outside [least, below).
    """
    wanted = f"{package} >= {_dotted(least)}, < {_dotted(below)} ({install})"
    if not is_installed(package):
        raise EngineUnavailableError(where=package, required=wanted, received="not installed")
    try:
        module: Any = importlib.import_module(package)
    except (ImportError, OSError, RuntimeError) as error:  # no CUDA library, another torch
        raise EngineUnavailableError(where=package, required=wanted, received=first_line(error)) from error
    version = str(getattr(module, "__version__", "unknown"))
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or not least <= (int(found[1]), int(found[2])) < below:
        raise EngineUnavailableError(where=package, required=wanted, received=version)
    return module, version


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


@dataclass(frozen=True)
class Served:
    """A checkpoint as an engine will read it.

    Args:
        directory: local.
        config: its ``config.json``.
        quantization: compressed-tensors, W8A16, FP8…, or "" for plain weights.
    """

    directory: Path
    config: dict[str, Any]
    quantization: str

    @property
    def hidden_size(self) -> int:
        return int(self.config["hidden_size"])

    @property
    def vocabulary(self) -> int:
        return int(self.config["vocab_size"])


def served_checkpoint(ref: str) -> Served:
    """Reads what a model's directory says of itself.

    Raises:
        ConfigError: a Sentence-Transformers export with a projection: an engine would return that, not the state.
        ModelNotFoundError: no such model.
    """
    directory = checkpoint_directory(ref)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    modules = directory / "modules.json"
    if modules.is_file() and any(str(module.get("type", "")).endswith("Dense") for module in read_json(modules)):
        required = "a model without a Dense module (its engine would return the projection, not the state)"
        raise ConfigError(where=str(modules), required=required, received="a Sentence-Transformers export")
    method = str(config.get("quantization_config", {}).get("quant_method", ""))
    modelopt = directory / "hf_quant_config.json"
    if modelopt.is_file():
        method = str(read_json(modelopt).get("quantization", {}).get("quant_algo") or "")
    return Served(directory, config, method)


def whole_prompts(
    token_ids: Sequence[TokenIds], prefix_ids: Sequence[int], *, vocabulary: int, max_tokens: int, where: str
) -> list[list[int]]:
    """Prefix and prompt as one list of ints each, checked.

    Raises:
        DataError: no prompt, an empty one, a token outside the vocabulary, more than ``max_tokens``.
    """
    if not len(token_ids):
        raise DataError(where=where, required="at least one prompt", received="none")
    prefix = np.asarray(prefix_ids, dtype=np.int64)
    prompts = []
    for index, ids in enumerate(token_ids):
        array = np.asarray(ids)
        if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
            received = f"{array.dtype} of shape {array.shape}"
            raise DataError(where=f"prompt {index}", required="a non-empty row of token ids", received=received)
        whole = np.concatenate([prefix, array])
        if whole.min() < 0 or whole.max() >= vocabulary:
            received = f"{int(whole.min())}..{int(whole.max())}"
            raise DataError(where=f"prompt {index}", required=f"token ids in 0..{vocabulary - 1}", received=received)
        if len(whole) > max_tokens:
            required = f"at most {max_tokens} tokens with the prefix"
            raise DataError(where=f"prompt {index}", required=required, received=str(len(whole)))
        prompts.append(whole.tolist())
    return prompts


def stacked_states(states: Sequence[Any], count: int, hidden_size: int, where: str) -> Tensor:
    """[B, D] float32 of one tensor a request.

    Raises:
        EngineError: another number of answers, another width, NaN or infinity.
    """
    if len(states) != count:
        raise EngineError(where=where, required=f"{count} answers", received=str(len(states)))
    rows = []
    for index, state in enumerate(states):
        row = torch.as_tensor(state).detach().float().cpu().flatten()
        if len(row) != hidden_size:
            required = f"{hidden_size} numbers: the state after the final norm at the last token"
            received = f"shape {tuple(torch.as_tensor(state).shape)}"
            raise EngineError(where=f"{where}, prompt {index}", required=required, received=received)
        if not bool(torch.isfinite(row).all()):
            raise EngineError(where=f"{where}, prompt {index}", required="finite numbers", received="NaN or infinity")
        rows.append(row)
    return torch.stack(rows)


def engine_failure(error: BaseException, where: str, memory_hint: str) -> EngineError:
    """What an engine raised, as our error; told apart: memory, for which there is something to be done."""
    text = " ".join(str(cause) for cause in _causes(error))
    required = f"enough memory on the GPU ({memory_hint})" if OUT_OF_MEMORY.search(text) else "an engine that runs"
    return EngineError(where=where, required=required, received=f"{type(error).__name__}: {first_line(error)}")


def _causes(error: BaseException) -> list[BaseException]:
    found = [error]
    while (cause := found[-1].__cause__ or found[-1].__context__) is not None and cause not in found:
        found.append(cause)
    return found


def first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
