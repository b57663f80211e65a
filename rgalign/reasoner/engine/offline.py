"""An engine for embedding a dataset, built once beside the vectors that it makes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from rgalign.errors import ConfigError, DataError
from rgalign.reasoner.engine.artifact import MANIFEST, read_manifest
from rgalign.reasoner.engine.build import Calibration, build_engine
from rgalign.reasoner.engine.quantize import EngineDtype
from rgalign.reasoner.engine.reasoner import POOLINGS, EngineReasoner, load_engine
from rgalign.reasoner.pretrained import cache_directory, load_tokenizer, model_fingerprint

logger = logging.getLogger(__name__)


def engine_beside(
    store: Path | None,
    model: str,
    dtype: EngineDtype,
    *,
    pooling: str,
    max_batch_tokens: int,
    calibration: Callable[[], Calibration | None] = lambda: None,
) -> EngineReasoner:
    """The engine of ``model`` in ``store/engine-DTYPE``, built if it is not there or of other weights.

    Without a store it is kept in the cache directory, uncalibrated.

    Args:
        calibration: of an engine that has to be built.

    Raises:
        ConfigError: a pooling that it does not have.
    """
    if pooling not in POOLINGS:
        raise ConfigError(where="pooling with backend engine", required=" or ".join(POOLINGS), received=repr(pooling))
    if store is None:
        directory = cache_directory() / "engines" / f"{model_fingerprint(model)[:12]}-{dtype}"
    else:
        directory = store / f"engine-{dtype}"
    if not _is_there(directory, model):
        logger.info("building the %s engine of %s in %s (once)", dtype, model, directory)
        build_engine(model, directory, dtype, calibration())
    return load_engine(
        directory,
        torch.get_num_threads(),
        tokenizer=load_tokenizer(model),
        pooling=pooling,
        max_batch_tokens=max_batch_tokens,
    )


def _is_there(directory: Path, model: str) -> bool:
    if not (directory / MANIFEST).is_file():
        return False
    try:
        return read_manifest(directory).model == model_fingerprint(model)
    except DataError as error:
        logger.warning("building again: %s", error)
        return False
