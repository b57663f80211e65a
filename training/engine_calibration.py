"""Prompts of a dataset for an engine's calibration (rgalign engine build --calibrate)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rgalign.chat_format import PromptTemplate
from rgalign.data.dataset import Dataset
from rgalign.errors import ConfigError, DataError
from rgalign.files import sha256_json
from rgalign.reasoner.engine.build import Calibration
from rgalign.reasoner.pretrained import load_tokenizer
from rgalign.training.embed import EmbedConfig, prompt_encoder, shard_prompts


def calibration_of(
    dataset: Path, model: str, *, template: str | PromptTemplate, count: int, alpha: float
) -> Calibration:
    """``count`` prompts spread evenly over the first training shard, constant prefix included."""
    if not 0.0 <= alpha <= 1.0 or count < 1:
        received = f"alpha {alpha}, {count} prompts"
        raise ConfigError(where="calibration", required="alpha in [0, 1] and at least one prompt", received=received)
    opened = Dataset.open(dataset)
    encoder = prompt_encoder(EmbedConfig(model=model, template=template), load_tokenizer(model), opened)
    _, prompts = next(shard_prompts(opened, "train", encoder), ("", []))
    if not prompts:
        raise DataError(where=f"{dataset} train", required="sessions to calibrate on", received="none")
    prefix = np.asarray(encoder.prefix_ids, dtype=np.int32)
    chosen = np.unique(np.linspace(0, len(prompts) - 1, count).astype(int))
    named = {
        "template": encoder.template.name,
        "frame": sha256_json([encoder.prefix_ids, encoder.suffix_ids]),
        "prefix_ids": list(encoder.prefix_ids),
    }
    # alpha 0 would still divide by the weights' own peaks: nothing is moved then.
    return Calibration([np.concatenate([prefix, prompts[row]]) for row in chosen], alpha or None, named)
