"""Reasoner and query tower as a Sentence-Transformers directory, which vLLM and Text Embeddings Inference serve.

    q̂ = normalize(W h + b)        h: the state after the final norm at the last token; W, b: the ranker's query tower

    DIR/                config.json, weights, tokenizer: the reasoner, a Transformer module
      1_Pooling/        last token
      2_Dense/          W [d, D], b [d], no activation; the standardisation of the tower is folded in
      3_Normalize/
      rgalign.json      the prompt round the slots, and hashes of what was exported

The module paths are those of Sentence Transformers before version 6, which later versions, TEI and vLLM 0.33
(transformers_utils/config.py) all read.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors.torch import save_file
from torch import Tensor

from rgalign.errors import ConfigError, DataError
from rgalign.files import read_json, sha256_file, sync_directory, write_json
from rgalign.reasoner.engine.checkpoint import checkpoint_directory
from rgalign.reasoner.pretrained import load_tokenizer, model_fingerprint

INFO = "rgalign.json"
MODULES = ("Transformer", "Pooling", "Dense", "Normalize")
FOLDERS = ("", "1_Pooling", "2_Dense", "3_Normalize")
NOT_COPIED = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", INFO)


def export_sentence_transformers(
    ref: str, out: Path, weight: Tensor, bias: Tensor, *, max_tokens: int, info: dict[str, Any]
) -> dict[str, Any]:
    """Writes the directory ``out`` whole, replacing one that it wrote before.

    Args:
        ref: the reasoner, see :mod:`rgalign.reasoner.pretrained`.
        weight: [d, D]; bias: [d] of the query tower, :meth:`QueryTower.folded`.
        max_tokens: of a prompt.
        info: what else ``rgalign.json`` is to say.

    Returns:
        What ``rgalign.json`` holds.

    Raises:
        ConfigError: another directory at ``out``, or a tokenizer that adds tokens of its own whatever is done.
        DataError: a tower of another width than the reasoner's.
    """
    source = checkpoint_directory(ref)
    hidden = int(read_json(source / "config.json")["hidden_size"])
    if weight.ndim != 2 or weight.shape[1] != hidden or bias.shape != weight.shape[:1]:
        received = f"W {list(weight.shape)}, b {list(bias.shape)}"
        raise DataError(where="query tower", required=f"W [d, {hidden}] and b [d]", received=received)
    if out.exists() and not (out / INFO).is_file():
        raise ConfigError(where=str(out), required="a new directory or one exported before", received="another one")
    out.parent.mkdir(parents=True, exist_ok=True)
    building = out.with_name(f".{out.name}.{uuid4().hex[:8]}.tmp")
    building.mkdir()
    try:
        for path in source.iterdir():
            if path.is_file() and path.suffix in (".safetensors", ".json") and path.name not in NOT_COPIED:
                shutil.copyfile(path, building / path.name)
        _save_tokenizer(ref, building, max_tokens)
        _write_modules(building, weight, bias, max_tokens)
        files = sorted(path for path in building.rglob("*") if path.is_file())
        made = {
            **info,
            "format": 1,
            "reasoner": model_fingerprint(ref),
            "files": {str(path.relative_to(building)): sha256_file(path) for path in files},
        }
        write_json(building / INFO, made)
        for path in files:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        if out.exists():
            shutil.rmtree(out)
        os.replace(building, out)
        sync_directory(out.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return made


def _write_modules(directory: Path, weight: Tensor, bias: Tensor, max_tokens: int) -> None:
    modules = [
        {"idx": index, "name": str(index), "path": folder, "type": f"sentence_transformers.models.{module}"}
        for index, (module, folder) in enumerate(zip(MODULES, FOLDERS, strict=True))
    ]
    out_features, in_features = weight.shape
    pooling = dict.fromkeys(
        [f"pooling_mode_{mode}_tokens" for mode in ("max", "mean", "mean_sqrt_len", "weightedmean")], False
    )
    dense = {"in_features": in_features, "out_features": out_features, "bias": True}
    write_json(directory / "modules.json", modules)
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": max_tokens, "do_lower_case": False})
    write_json(
        directory / "config_sentence_transformers.json",
        {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )
    write_json(
        directory / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": in_features,
            "pooling_mode_cls_token": False,
            **pooling,
            "pooling_mode_lasttoken": True,
            "include_prompt": True,
        },
    )
    write_json(
        directory / "2_Dense" / "config.json",
        {**dense, "activation_function": "torch.nn.modules.linear.Identity"},
    )
    tensors = {"linear.weight": weight.detach().float().contiguous(), "linear.bias": bias.detach().float().contiguous()}
    save_file(tensors, directory / "2_Dense" / "model.safetensors", {"format": "pt"})
    write_json(directory / "3_Normalize" / "config.json", {})


def _save_tokenizer(ref: str, directory: Path, max_tokens: int) -> None:
    """Adds nothing to a text (our prompts have all their control tokens), can pad, and keeps whole prompts."""
    tokenizer = load_tokenizer(ref)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_max_length = max_tokens
    if _adds_tokens(tokenizer):
        from tokenizers import processors

        tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
        for name in ("add_bos_token", "add_eos_token"):
            tokenizer.init_kwargs.pop(name, None)
    tokenizer.save_pretrained(directory)
    if _adds_tokens(load_tokenizer(str(directory))):
        received = "tokens at its beginning or end"
        raise ConfigError(where=f"tokenizer of {ref!r}", required="one that adds nothing to a text", received=received)


def _adds_tokens(tokenizer: Any) -> bool:
    text = "a b"
    return bool(tokenizer(text).input_ids != tokenizer(text, add_special_tokens=False).input_ids)
