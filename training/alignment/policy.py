"""The model that is aligned: what of it trains, and how it becomes a checkpoint that any backend loads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from rgalign.errors import ConfigError, ModelNotFoundError
from rgalign.files import sync_directory, write_json
from rgalign.reasoner.continuation import padding_of
from rgalign.reasoner.pretrained import load_causal_lm, without_weights_bar
from rgalign.room_on_disk import room_on_disk
from rgalign.training.alignment.alignment_config import AlignmentConfig, LoraSettings
from rgalign.training.alignment.grouped_attention import group_queries
from rgalign.training.alignment.lower_states import LowerStates, StoredStates
from rgalign.training.alignment.split_model import put_back, upper_part
from rgalign.training.run_directory import DONE

MODEL = "model"
CARD = "alignment.json"  # beside the weights: what they were made from


@dataclass
class Policy:
    """Attributes:
    trained: the model a trainer gets (for tuning ``upper`` the upper part).
    whole: the model that is saved in the end.
    states: for tuning ``upper``.
    """

    trained: Any
    whole: Any
    tokenizer: Any
    tuning: str
    states: LowerStates | None = None

    @property
    def pad_token_id(self) -> int:
        return padding_of(self.tokenizer)


def model_reference(config: AlignmentConfig, base: str) -> str:
    """Where training begins: the base reasoner, an alignment run's model, or a model directory.

    Raises:
        ModelNotFoundError: ``init`` is none of these, or a run that is not finished.
    """
    if config.init is None:
        return base
    run = config.init / MODEL
    if (config.init / "inputs.json").is_file():
        if not (config.init / DONE).is_file():
            required = "a finished alignment run"
            raise ModelNotFoundError(where=str(config.init), required=required, received="one without its marker")
        return str(run)
    return str(config.init)


def load_policy(config: AlignmentConfig, reference: str) -> Policy:
    """Loads the model and says which of its parameters train.

    Raises:
        ModelNotFoundError: no such model.
        ConfigError: a tokenizer without padding and end of sequence, or a model that cannot be cut.
    """
    dtype = torch.bfloat16 if config.precision == "bf16" and config.tuning == "lora" else torch.float32
    model, tokenizer = load_causal_lm(reference, dtype)
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        required = "a tokenizer with a padding or an end-of-sequence token"
        raise ConfigError(where=f"model {reference!r}", required=required, received="neither")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    policy = Policy(model, model, tokenizer, config.tuning)
    if config.tuning == "upper":
        num_lower = len(model.get_decoder().layers) - config.upper_layers
        autocast = config.precision == "bf16"
        states = LowerStates(model, num_lower, cache=config.state_cache, dtype=config.state_dtype, autocast=autocast)
        policy.trained = upper_part(model, num_lower, StoredStates(states, policy.pad_token_id))
        policy.states = states
        if autocast and config.device == "cpu":
            group_queries(policy.trained)
    elif config.tuning == "full":
        model.requires_grad_(True)
    return policy


def lora(settings: LoraSettings) -> Any:
    """PEFT's configuration: adapters on every linear layer but the LM head."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def finished_model(policy: Policy, trained: Any, weights: Mapping[str, Tensor]) -> tuple[Any, Mapping[str, Tensor]]:
    """The whole model and its weights after training.

    Args:
        trained: the unwrapped model the trainer held. weights: its state, gathered from all processes.
    """
    if policy.tuning == "full":
        return trained, weights
    if policy.tuning == "lora":
        merged = trained.merge_and_unload()
        return merged, merged.state_dict()
    assert policy.states is not None
    put_back(trained, policy.whole, policy.states.num_layers)
    return policy.whole, policy.whole.state_dict()


def save_model(path: Path, model: Any, weights: Mapping[str, Tensor], tokenizer: Any, card: Mapping[str, Any]) -> None:
    """Writes a model directory, whole or not at all.

    Raises:
        DataError: a full disk; the directory is as it was.
    """
    building = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        with room_on_disk(path), without_weights_bar():
            model.save_pretrained(building, state_dict=dict(weights))
            tokenizer.save_pretrained(building)
            write_json(building / CARD, card)
            for file in building.iterdir():
                with open(file, "rb") as opened:
                    os.fsync(opened.fileno())
            sync_directory(building)
            shutil.rmtree(path, ignore_errors=True)
            os.replace(building, path)
            sync_directory(path.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)
