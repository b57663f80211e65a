"""Configuration of candidate generation: which sessions, which teachers, in which order of priority."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rgalign.config import Config
from rgalign.data.dataset import Dataset
from rgalign.files import sha256_file
from rgalign.training.teachers.local_teacher import LocalConfig, LocalTeacher, ReasonerConfig
from rgalign.training.teachers.neighbour_teacher import NeighbourConfig, NeighbourTeacher
from rgalign.training.teachers.openai_config import OpenAIConfig
from rgalign.training.teachers.replay import ReplayTeacher
from rgalign.training.teachers.teacher import Name, Teacher
from rgalign.training.teachers.transition_teacher import TransitionConfig, TransitionTeacher
from rgalign.training.teachers.validator import ValidatorConfig


class ReplayConfig(Config):
    """Queries made elsewhere: parquet or JSONL with ``session_id`` and ``query``."""

    kind: Literal["replay"]
    name: Name
    path: Path
    knows_titles: bool = False


TeacherConfig = Annotated[
    OpenAIConfig | LocalConfig | ReplayConfig | NeighbourConfig | TransitionConfig | ReasonerConfig,
    Field(discriminator="kind"),
]
LOG_TEACHERS: tuple[dict[str, str], ...] = ({"kind": "neighbour"}, {"kind": "transition"}, {"kind": "reasoner"})


class GenerateConfig(Config):
    """``rgalign train generate``.

    Args:
        dataset: dataset directory.
        latents: directory of latent queries (``rgalign embed``); the teacher ``reasoner`` is what made them.
        split: whose sessions are asked about. The log teachers read ``train`` only, whichever it is.
        max_sessions: ask about so many; ``order`` takes evenly spaced ones or the last in time.
        teachers: in order of priority, the best first (paper: CompassMax > Gemini > GPT-5 > Qwen3).
        budget: the run stops asking when answers and paid failures, former ones too, have cost so much.
        cache: where answers are kept; default: ``cache`` in the run. Several runs may share one.
    """

    dataset: Path
    latents: Path | None = None
    split: Literal["train", "valid"] = "train"
    max_sessions: int | None = Field(default=None, ge=1)
    order: Literal["spaced", "latest"] = "spaced"
    teachers: tuple[TeacherConfig, ...] = Field(default=LOG_TEACHERS, min_length=1, validate_default=True)
    validator: ValidatorConfig = ValidatorConfig()
    include_pii: bool = False
    budget: float | None = Field(default=None, gt=0)
    cache: Path | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        repeated = [name for name, count in Counter(each.name for each in self.teachers).items() if count > 1]
        if repeated:
            raise ValueError(f"teachers need different names, got {repeated[0]!r} twice")
        if self.latents is None and any(each.kind == "reasoner" for each in self.teachers):
            raise ValueError("the teacher of kind reasoner needs latents: what made them is the reasoner")
        return self

    def require_keys(self) -> None:
        """Raises ConfigError: a teacher's key is not in the environment."""
        for each in self.teachers:
            if isinstance(each, OpenAIConfig):
                each.api_key()

    def identity(self) -> dict[str, Any]:
        """What a run must agree on, besides the content of its files, to be the same run."""
        values = self.model_dump(mode="json", exclude={"dataset", "latents", "cache", "budget", "teachers"})
        return {**values, "teachers": [_answers_alike(each) for each in self.teachers]}


PACE = frozenset(
    {"concurrency", "requests_per_minute", "tokens_per_minute", "timeout_s", "max_attempts", "backoff_s"}
    | {"max_backoff_s", "max_retry_after_s", "max_failures", "batch_tokens", "device", "path", "api_key_env"}
)


def _answers_alike(config: TeacherConfig) -> dict[str, Any]:
    """Without what decides only how fast the answers come; a file by its content."""
    values = config.model_dump(mode="json", exclude=set(PACE))
    return values | {"file": sha256_file(config.path)} if isinstance(config, ReplayConfig) else values


def build_teacher(config: TeacherConfig, settings: GenerateConfig, dataset: Dataset) -> Teacher:
    """Loads or connects one teacher."""
    if isinstance(config, OpenAIConfig):
        from rgalign.training.teachers.openai_teacher import OpenAITeacher  # httpx, for those who have such a teacher

        return OpenAITeacher(config, dataset.schema, include_pii=settings.include_pii)
    if isinstance(config, ReplayConfig):
        return ReplayTeacher(config.name, config.path, knows_titles=config.knows_titles)
    if isinstance(config, NeighbourConfig):
        return NeighbourTeacher(config, dataset, settings.split)
    if isinstance(config, TransitionConfig):
        return TransitionTeacher(config, dataset, settings.split)
    if isinstance(config, ReasonerConfig):
        assert settings.latents is not None
        return LocalTeacher.reasoner(config, embedding_of(settings.latents), dataset)
    return LocalTeacher.load(config, dataset, include_pii=settings.include_pii)


def embedding_of(latents: Path) -> Any:
    """How the latent queries in a directory were made."""
    from rgalign.config import load_config
    from rgalign.training.embed import EMBED_CONFIG, EmbedConfig

    return load_config(EmbedConfig, latents / EMBED_CONFIG)
