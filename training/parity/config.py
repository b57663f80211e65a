"""What the parity gate compares, and how far from the definition an engine's answers may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, model_validator

from rgalign.chat_format import PromptTemplate
from rgalign.config import Config
from rgalign.errors import ConfigError
from rgalign.metrics.significance import Resampling
from rgalign.reasoner.other_engines import OTHER_DTYPES, installed_engines

Backend = Literal["engine", "cuda", "vllm", "tensorrt_llm"]
DTYPES: dict[str, tuple[str, ...]] = {
    "engine": ("fp32", "int8a12", "int8"),
    "cuda": ("fp32", "bf16", "int8", "fp8"),
    **OTHER_DTYPES,
}


class Limits(Config):
    """An engine passes inside all of them; None asks nothing.

    Args:
        cosine_mean, cosine_min: of its vectors and the definition's, over distinct prompts.
        centred_mean: the same after each side's mean vector is taken off: what tells prompts apart.
        overlap: mean share of the k best intents that are the same.
        change: largest |difference| of recall@k and of NDCG@k.
        interval: how far from zero the confidence interval of those differences may reach.
    """

    cosine_mean: float | None = None
    cosine_min: float | None = None
    centred_mean: float | None = None
    overlap: float | None = None
    change: float | None = 0.0015
    interval: float | None = 0.004


def default_limits() -> dict[str, Limits]:
    """By type. Those of fp32, int8a12 and int8 are the project's gate; the others have not been measured yet."""
    return {
        "fp32": Limits(cosine_mean=0.99999, cosine_min=0.99999, centred_mean=0.9999, overlap=0.999),
        "int8a12": Limits(cosine_mean=0.999, cosine_min=0.995, centred_mean=0.98, overlap=0.98),
        "int8": Limits(cosine_mean=0.995, cosine_min=0.98, overlap=0.98),
        "fp16": Limits(cosine_mean=0.9999, cosine_min=0.999, centred_mean=0.99, overlap=0.98),
        "bf16": Limits(cosine_mean=0.999, cosine_min=0.99, centred_mean=0.97, overlap=0.98),
        "fp8": Limits(cosine_mean=0.99, cosine_min=0.97, overlap=0.97),
    }


class ParityConfig(Config):
    """``rgalign engine parity``.

    Args:
        split: whose sessions are compared.
        max_sessions: so many of them, evenly spaced; None: all.
        k: of the overlap and the metrics.
        engines: types of our own engine that are built and compared.
        other_engines: those that are installed, vLLM and TensorRT-LLM, are compared in bf16 too, unless named already.
        template: of the prompts, where no ranker says which.
        limits: by type, over :func:`default_limits`.
        checked_prompts: of reused definition vectors, so many are computed again and must agree.
        layer_prompts: for the report of where an 8-bit engine's error enters; 0 leaves it out.
        resamples, level, seed: of the intervals; whole users are drawn.
    """

    split: Literal["train", "valid", "test"] = "test"
    max_sessions: int | None = Field(default=None, ge=2)
    k: int = Field(default=3, ge=1)
    engines: tuple[Literal["fp32", "int8a12", "int8"], ...] = ("fp32", "int8a12", "int8")
    other_engines: bool = True
    template: str | PromptTemplate = "paper"
    limits: dict[str, Limits] = Field(default_factory=default_limits)
    checked_prompts: int = Field(default=8, ge=1)
    layer_prompts: int = Field(default=8, ge=0)
    max_batch_tokens: int = Field(default=256, ge=1)
    resamples: int = Field(default=10_000, ge=100)
    level: float = Field(default=0.95, gt=0, lt=1)
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, values: Any) -> Any:
        """A file that names one limit of one type keeps the others."""
        given = values.get("limits") if isinstance(values, dict) else None
        if not isinstance(given, dict):
            return values
        merged: dict[str, Any] = {name: limits.model_dump() for name, limits in default_limits().items()}
        for name, limits in given.items():
            merged[name] = {**merged.get(name, {}), **limits} if isinstance(limits, dict) else limits
        return {**values, "limits": merged}

    @model_validator(mode="after")
    def _known_types(self) -> Self:
        unknown = sorted(set(self.limits) - set(default_limits()))
        if unknown:
            raise ValueError(f"limits of unknown types {unknown}: one of {sorted(default_limits())}")
        if self.layer_prompts == 1:
            raise ValueError("layer_prompts: 0 or at least 2, errors are put beside the spread of the prompts")
        return self

    @property
    def resampling(self) -> Resampling:
        return Resampling(self.resamples, self.seed, self.level)


@dataclass(frozen=True)
class Candidate:
    """One engine to compare.

    Args:
        source: directory of a built engine or of a checkpoint made for this backend; None: made of the model, but an
            engine for a GPU is always a built one.
    """

    backend: Backend
    dtype: str
    source: Path | None = None

    @property
    def name(self) -> str:
        return f"{self.backend}-{self.dtype}" + (f"-{self.source.resolve().name}" if self.source else "")

    @classmethod
    def parse(cls, text: str) -> Candidate:
        """``BACKEND:DTYPE`` or ``BACKEND:DTYPE=DIRECTORY``."""
        named, _, directory = text.partition("=")
        backend, _, dtype = named.partition(":")
        if backend not in get_args(Backend) or dtype not in DTYPES[backend]:
            known = ", ".join(f"{name}:{type_}" for name, types in DTYPES.items() for type_ in types)
            raise ConfigError(
                where="--with", required=f"one of {known}, or one of them =DIRECTORY", received=repr(text)
            )
        return cls(backend, dtype, Path(directory) if directory else None)  # type: ignore[arg-type]  # just checked


def candidates(config: ParityConfig, extra: Sequence[Candidate]) -> list[Candidate]:
    """What is compared: our own engine's types, the ones asked for, and the other engines that are installed."""
    named = {candidate.backend for candidate in extra}
    others = [name for name in installed_engines() if name not in named] if config.other_engines else []
    own = [Candidate("engine", dtype) for dtype in config.engines]
    return [*own, *extra, *(Candidate(name, "bf16") for name in others)]
