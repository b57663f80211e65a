"""Intents' texts -> ``semantic`` [N, S]: HLLM's item encoder, NCE pre-trained on training-weeks clicks, then frozen.

    render texts -> keys and values of the frozen LM, once -> NCE steps (one token an intent) -> states of all intents

A run directory (run_directory.py) with ``semantic.safetensors`` and ``semantic.json`` in it. The same inputs again:
skipped when done, resumed when interrupted. ``item_encoder.safetensors`` embeds intents that come later.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import load_file
from torch import Tensor

from rgalign.config import load_config
from rgalign.data.dataset import Dataset
from rgalign.errors import ConfigError, ProvenanceError
from rgalign.files import sha256_json
from rgalign.intents import IntentCatalog
from rgalign.models.hllm import HLLMItemEncoder, item_text
from rgalign.models.nce import ItemProjection
from rgalign.models.text_encoder import SentenceEncoder
from rgalign.reasoner.pretrained import load_causal_lm, model_fingerprint
from rgalign.training.hllm_config import HLLMConfig
from rgalign.training.nce_training import pretrain
from rgalign.training.run_directory import RunDirectory
from rgalign.training.semantic import load_semantic, read_provenance, write_semantic
from rgalign.training.trainer_state import write_tensors

__all__ = ["HLLMConfig", "build_semantic", "encode_catalog", "load_semantic", "read_provenance"]

ENCODER = "item_encoder.safetensors"

logger = logging.getLogger(__name__)


def build_semantic(dataset: Dataset, config: HLLMConfig, out_dir: Path, progress: bool = True) -> Path:
    """Text vectors of the dataset's catalogue, trained on its ``train`` split only.

    Returns:
        ``out_dir``, for :func:`load_semantic`.

    Raises:
        ProvenanceError: ``out_dir`` holds vectors of other inputs.
        ConfigError: ``text_fields`` names a column that the catalogue does not have.
        ModelNotFoundError: the model is not on this machine.
    """
    texts = catalog_texts(dataset.catalog, config)
    encoder = load_encoder(config)
    inputs = semantic_inputs(dataset, config, texts, encoder.fingerprint)
    run = RunDirectory(Path(out_dir))
    run.require(inputs)
    if run.is_done:
        logger.info("text vectors in %s are up to date", out_dir)
        return run.path
    run.begin(inputs, config)
    metrics: dict[str, Any] = {}
    with progress_bar(progress) as bar:
        if isinstance(encoder, HLLMItemEncoder) and config.is_trained:
            result = pretrain(dataset, config, encoder, texts, run.path / "checkpoint", bar)
            matrix = _output(result.states, result.projection, config)
            _write_encoder(run.path, encoder, result.projection, config)
            run.write_history(result.history)
            metrics = result.metrics
        else:
            task = bar.add_task("intent texts", total=len(texts))
            matrix = encoder.encode(texts, on_texts=lambda count: bar.advance(task, count))
    write_semantic(run.path, matrix, dataset.catalog, inputs)
    run.finish(metrics)
    return run.path


def catalog_texts(catalog: IntentCatalog, config: HLLMConfig) -> list[str]:
    """[N] one text an intent: HLLM's rendering, or for a sentence encoder the fields' values as sentences."""
    known = ("title", "description", *catalog.extra)
    for name in config.text_fields or ():
        if name not in known:
            raise ConfigError(where="text_fields", required=f"columns of the catalogue: {known}", received=repr(name))
    texts = []
    for row in range(len(catalog)):
        fields = catalog.text(row)
        names = config.text_fields or tuple(fields)
        chosen = {name: fields[name] for name in names if name in fields}
        texts.append(". ".join(chosen.values()) if config.encoder == "sentence" else item_text(chosen))
    return texts


def load_encoder(config: HLLMConfig) -> HLLMItemEncoder | SentenceEncoder:
    if config.encoder == "sentence":
        encoder = SentenceEncoder.from_pretrained(config.model, max_length=config.max_text_length)
        encoder.model.to(config.device)
        return encoder
    model, tokenizer = load_causal_lm(config.model, getattr(torch, config.dtype))
    model.to(config.device).requires_grad_(config.tune == "all")
    return HLLMItemEncoder(
        model,
        tokenizer,
        item_token_num=0 if config.tune == "none" else 1,
        max_text_length=config.max_text_length,
        batch_tokens=config.batch_tokens,
        fingerprint=model_fingerprint(config.model),
        seed=config.seed,
    )


def semantic_inputs(dataset: Dataset, config: HLLMConfig, texts: Sequence[str], fingerprint: str) -> dict[str, Any]:
    """Everything that decides the vectors. Sessions count only where they are trained on."""
    inputs: dict[str, Any] = {
        "config": config.choices(),
        "model": fingerprint,
        "catalogue": dataset.catalog.hash,
        "texts": sha256_json(list(texts)),
    }
    if config.is_trained:
        inputs |= {"schema": dataset.schema.hash, "train": dataset.fingerprint("train")}
    return inputs


def encode_catalog(directory: Path, catalog: IntentCatalog, *, progress: bool = False) -> Tensor:
    """Vectors [N, S] of another catalogue by the encoder that ``directory`` was made with: new intents have text only.

    Raises:
        ProvenanceError: no text vectors there, or the model has changed since.
    """
    provenance = read_provenance(directory)
    config = load_config(HLLMConfig, Path(directory) / "config.yaml")
    encoder = load_encoder(config)
    if encoder.fingerprint != provenance["model"]:
        received = f"model {encoder.fingerprint[:12]}"
        raise ProvenanceError(where=str(directory), required=f"model {provenance['model'][:12]}", received=received)
    projection = None
    if isinstance(encoder, HLLMItemEncoder) and config.is_trained:
        tensors = load_file(Path(directory) / ENCODER)
        projection = ItemProjection(torch.zeros(1, encoder.dim), config.dim)
        projection.load_state_dict(_under("projection.", tensors))
        encoder.load_state_dict(_under("encoder.", tensors), strict=False)
    texts = catalog_texts(catalog, config)
    with progress_bar(progress) as bar:
        task = bar.add_task("intent texts", total=len(texts))
        states = encoder.encode(texts, on_texts=lambda count: bar.advance(task, count))
    return _output(states, projection, config)


@torch.no_grad()
def _output(states: Tensor, projection: ItemProjection | None, config: HLLMConfig) -> Tensor:
    if config.output == "hidden" or projection is None:
        return states
    vectors: Tensor = projection.cpu()(states)
    return vectors


def _write_encoder(path: Path, encoder: HLLMItemEncoder, projection: ItemProjection, config: HLLMConfig) -> None:
    """What training changed: token and projection, and the LM where it was tuned."""
    tuned = encoder.state_dict()
    if config.tune != "all":
        tuned = {"item_token": tuned["item_token"]}
    tensors = {f"encoder.{name}": tensor for name, tensor in tuned.items()}
    tensors |= {f"projection.{name}": tensor for name, tensor in projection.state_dict().items()}
    write_tensors(tensors, path / ENCODER)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def progress_bar(enabled: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, disable=not enabled)
