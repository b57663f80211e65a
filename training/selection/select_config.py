"""Configuration of the selection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from rgalign.config import Config
from rgalign.errors import ConfigError
from rgalign.training.selection.strategies import Strategy, TieBreak, V4Keep


class SelectConfig(Config):
    """``rgalign train select``.

    Args:
        rewards: finished run of ``rgalign train reward``.
        priority: teachers, the best first; default: the order they were configured in for generation.
        base: the teacher that is the reasoner itself (Qwen3-4B in the paper).
        v4_keep: "both" chooses two queries of a session where V4's farthest and nearest differ: two rows of it train.
        min_reward: sessions whose chosen query is worth less are dropped; 0 is the paper's.
        max_rejected: of a session, the best ones.
    """

    rewards: Path
    strategy: Strategy = "V2"
    tie_break: TieBreak = "priority"
    v4_keep: V4Keep = "best"
    priority: tuple[str, ...] | None = None
    base: str = "reasoner"
    min_reward: float = Field(default=0.0, ge=0, le=1)
    max_rejected: int = Field(default=3, ge=1)
    examples: int = Field(default=20, ge=0)

    def require_base(self, teachers: Sequence[str]) -> None:
        """V2 to V4 compare with the base's queries.

        Raises:
            ConfigError: it is none of the teachers.
        """
        if self.strategy != "V1" and self.base not in teachers:
            required = f"strategy V1, or a teacher named {self.base!r} (kind: reasoner)"
            received = f"{self.strategy} with the teachers {', '.join(teachers)}"
            raise ConfigError(where="section select", required=required, received=received)

    def identity(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"rewards"})
