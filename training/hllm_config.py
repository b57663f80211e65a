"""Configuration of the item encoder and its pre-training."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rgalign.config import Config
from rgalign.models.user_tower import UserTowerConfig

SMALL_USER = UserTowerConfig(
    embedding_dim=8, history_dim=16, attention_dim=32, num_layers=1, hidden=(128,), tie_intents=True
)


class HLLMConfig(Config):
    """How intents' texts become vectors.

    Args:
        model: what :mod:`rgalign.reasoner.pretrained` can load; HLLM itself used a 1.1B model. For ``encoder:
            sentence``: ``minilm`` or a directory with a sentence encoder, used as it is.
        tune: ``token`` trains the appended token and the projection, the LM is frozen: fits two CPU cores. ``all``
            trains the LM too. ``none``: mean of the frozen LM's states, no training.
        output: ``hidden`` [N, D] item states; ``projected`` [N, dim] unit vectors as the NCE compares them.
        text_fields: the catalogue's columns to read, in this order; None: title, description, then all others.
        max_text_length: tokens of a text, the prompt included.
        dim: width of the projection.
        num_negatives: intents drawn for each batch besides those clicked in it.
        fresh_intents: how many intents of an LM step have gradients; the others are encoded without.
        lm_every: every how many steps the LM is run. The steps between train user side and projection alone.
        max_steps, max_seconds: whichever comes first; the schedule is fitted to it. Without ``max_seconds`` a run is
            reproducible bit by bit.
        learning_rate: of the LM, and of the token with it. ``token_learning_rate``: of the token alone.
        max_train_intents: the most clicked ones take part in pre-training; their keys and values are held in memory
            (46 KB a token for SmolLM2-135M). The others are encoded when it is over.
        max_sessions: drawn from the training split.
    """

    model: str = "smollm2"
    encoder: Literal["llm", "sentence"] = "llm"
    tune: Literal["none", "token", "all"] = "token"
    output: Literal["hidden", "projected"] = "hidden"
    text_fields: tuple[str, ...] | None = None
    max_text_length: int = Field(default=256, gt=0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    dim: int = Field(default=128, gt=0)
    user: UserTowerConfig = SMALL_USER
    user_dropout: float = Field(default=0.1, ge=0, lt=1)
    batch_size: int = Field(default=256, gt=0)
    num_negatives: int = Field(default=256, gt=0)
    fresh_intents: int = Field(default=128, gt=0)
    lm_every: int = Field(default=10, gt=0)
    max_steps: int = Field(default=400, gt=0)
    max_seconds: float | None = Field(default=None, gt=0)
    learning_rate: float = Field(default=1e-4, gt=0)
    token_learning_rate: float = Field(default=1e-3, gt=0)
    head_learning_rate: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    clip_norm: float = Field(default=1.0, gt=0)
    nce_threshold: float = Field(default=0.99, gt=0, le=1)
    max_train_intents: int = Field(default=256, gt=1)
    max_sessions: int = Field(default=40_000, gt=0)
    seed: int = 0
    batch_tokens: int = Field(default=2048, gt=0)
    checkpoint_seconds: float = Field(default=20.0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.is_trained and self.output == "projected":
            raise ValueError("output: projected needs a trained projection (tune: token or all, encoder: llm)")
        if not self.user.tie_intents:
            raise ValueError("user.tie_intents must be true: the user side reads the item embeddings")
        return self

    @property
    def is_trained(self) -> bool:
        return self.encoder == "llm" and self.tune != "none"

    def choices(self) -> dict[str, object]:
        """What decides the vectors: not where or in what portions they are computed."""
        return self.model_dump(mode="json", exclude={"device", "batch_tokens", "checkpoint_seconds"})
