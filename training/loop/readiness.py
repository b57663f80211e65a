"""What a fresh run would otherwise miss hours later: the keys of its teachers, and DeepSpeed for its alignments."""

from __future__ import annotations

from importlib.util import find_spec

from rgalign.errors import ConfigError
from rgalign.training.loop.loop_config import NOWHERE, LoopConfig
from rgalign.training.teachers.openai_config import OpenAIConfig


def require_ready(config: LoopConfig) -> None:
    """Looks at this machine alone; a configuration may be checked on another.

    Raises:
        ConfigError: a teacher's key is not in the environment, or ZeRO without DeepSpeed.
    """
    for teacher in config.generate_config(NOWHERE).teachers:
        if isinstance(teacher, OpenAIConfig):
            teacher.api_key()
    for name in ("sft", "align"):
        paths = (NOWHERE, NOWHERE, NOWHERE)
        made = config.sft_config(*paths) if name == "sft" else config.align_config(*paths, NOWHERE)
        if made.zero_stage and find_spec("deepspeed") is None:
            required = (
                "the extra `zero` (docs/alignment.md), or a preset without ZeRO, such as small_cpu or single_gpu_lora"
            )
            received = f"preset {made.preset} with zero_stage {made.zero_stage}, and no deepspeed"
            raise ConfigError(where=f"section {name}", required=required, received=received)
