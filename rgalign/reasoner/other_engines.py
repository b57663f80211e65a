"""Other engines behind the reasoner's protocol, by name: where a configuration or a command line names one."""

from __future__ import annotations

from typing import Literal, TypeAlias, cast, get_args

from rgalign.errors import ConfigError
from rgalign.reasoner.adapter import is_installed
from rgalign.reasoner.tensorrt_llm.reasoner import TensorRTDtype, TensorRTReasoner
from rgalign.reasoner.vllm import VllmDtype, VllmReasoner

OtherEngine: TypeAlias = Literal["vllm", "tensorrt_llm"]
OtherReasoner: TypeAlias = VllmReasoner | TensorRTReasoner
OTHER_DTYPES: dict[str, tuple[str, ...]] = {"vllm": get_args(VllmDtype), "tensorrt_llm": get_args(TensorRTDtype)}


def installed_engines() -> list[OtherEngine]:
    """Those whose package is here; whether it loads is only seen when it is loaded."""
    return [name for name in get_args(OtherEngine) if is_installed(name)]


def load_other_engine(
    backend: OtherEngine, ref: str, dtype: str, *, pooling: str = "ltp", max_tokens: int = 512
) -> OtherReasoner:
    """The reasoner of another engine.

    Args:
        ref: a model, or for int8 a directory that ``rgalign engine build --for`` wrote for this engine.
        max_tokens: of a whole prompt, prefix included.

    Raises:
        ConfigError: a type or pooling that the engine does not have, a checkpoint that does not fit the type.
        EngineUnavailableError: the package is not installed, or in another version.
        EngineError: it did not start.
    """
    if dtype not in OTHER_DTYPES[backend]:
        raise ConfigError(where=backend, required=f"one of {', '.join(OTHER_DTYPES[backend])}", received=repr(dtype))
    if pooling != "ltp":
        raise ConfigError(where=backend, required="pooling ltp", received=repr(pooling))
    if backend == "vllm":
        return VllmReasoner.from_pretrained(ref, dtype=cast(VllmDtype, dtype), max_tokens=max_tokens)
    return TensorRTReasoner.from_pretrained(ref, dtype=cast(TensorRTDtype, dtype), max_tokens=max_tokens)
