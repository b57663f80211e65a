"""What a run would otherwise miss hours later: what its configuration and this machine lack for later steps."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rgalign.errors import ConfigError
from rgalign.training.loop.loop_config import NOWHERE, LoopConfig
from rgalign.training.loop.step import StepFolder
from rgalign.training.reward.folds import require_untrained
from rgalign.training.selection.strategies import Strategy
from rgalign.training.teachers.openai_config import OpenAIConfig


def require_ready(config: LoopConfig, strategies: Sequence[Strategy], generated: Sequence[Path]) -> None:
    """Asked when a run that is not finished starts or goes on.

    Args:
        strategies: those that will be selected by.
        generated: the folders of the steps that ask the teachers.

    Raises:
        ConfigError: a strategy without the teacher that it compares with, a teacher's key that is not in the
            environment, or ZeRO without DeepSpeed.
        ProvenanceError: text vectors of the intents that were trained on clicks.
    """
    _require_base(config, strategies)
    require_untrained(config.semantic)
    if not all(StepFolder(folder).is_done for folder in generated):
        for teacher in config.generate_config(NOWHERE).teachers:
            if isinstance(teacher, OpenAIConfig):
                teacher.api_key()
    for section, alignment in config.alignments().items():
        if alignment.zero_stage and find_spec("deepspeed") is None:
            required = "the extra `zero` (docs/alignment.md), or a preset without ZeRO, such as small_cpu"
            received = f"preset {alignment.preset} with zero_stage {alignment.zero_stage}, and no deepspeed"
            raise ConfigError(where=f"section {section}", required=required, received=received)


def _require_base(config: LoopConfig, strategies: Sequence[Strategy]) -> None:
    """V2 to V4 compare with the queries of the reasoner itself."""
    base = config.select_config(NOWHERE).base
    teachers = [each.name for each in config.generate_config(NOWHERE).teachers]
    compared = ", ".join(strategy for strategy in strategies if strategy != "V1")
    if compared and base not in teachers:
        required = f"strategy V1, or a teacher named {base!r} (kind: reasoner) for {compared}"
        received = f"{compared} with the teachers {', '.join(teachers)}"
        raise ConfigError(where="section select", required=required, received=received)
