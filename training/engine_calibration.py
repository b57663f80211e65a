"""Prompts of a dataset for an engine's calibration (rgalign engine build --calibrate)."""

from __future__ import annotations

from pathlib import Path

from rgalign.chat_format import PromptTemplate
from rgalign.data.dataset import Dataset
from rgalign.errors import ConfigError, DataError
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
    # alpha 0 would still divide by the weights' own peaks: nothing is moved then.
    return Calibration.of(encoder, prompts, count=count, alpha=alpha or None)
