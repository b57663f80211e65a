"""Controls in the reasoner's place: what a vector per prompt is worth when no language model made it.

    random   a Gaussian vector drawn from the prompt's digest, of the mean norm of a reference store
    tfidf    TF-IDF of the prompt's token uni- and bigrams, fitted on the training split, then truncated SVD

Both fill a LatentStore of their own, so a ranker is trained on them exactly as on latent queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from rgalign.data.dataset import SPLITS, Dataset
from rgalign.prompt import PromptEncoder
from rgalign.reasoner.prefix_tree import TokenIds
from rgalign.reasoner.pretrained import load_tokenizer, model_fingerprint
from rgalign.training.embed import EmbedConfig, EmbedReport, fill_store, prompt_encoder, shard_prompts
from rgalign.training.latents import LatentStore, prompt_digest

Control = Literal["random", "tfidf"]
TFIDF_DIM = 256
MIN_DOCUMENTS = 3  # a gram in fewer training prompts says nothing


class RandomControl:
    """[B, D] Gaussian vectors scaled to ``norm``; the same prompt always gets the same one."""

    def __init__(self, dim: int, norm: float) -> None:
        self.dim = dim
        self.norm = norm

    def embed(
        self, token_ids: Sequence[TokenIds], *, prefix_ids: Sequence[int], on_prompts: Callable[[int], None]
    ) -> torch.Tensor:
        rows = np.empty((len(token_ids), self.dim), dtype=np.float32)
        for row, ids in zip(rows, token_ids, strict=True):
            seed = int.from_bytes(prompt_digest(ids), "little")
            drawn = np.random.default_rng(seed).standard_normal(self.dim)
            row[:] = drawn * (self.norm / np.linalg.norm(drawn))
        on_prompts(len(rows))
        return torch.from_numpy(rows)


class TfidfControl:
    """TF-IDF + SVD of token n-grams, fitted on the distinct training prompts."""

    def __init__(self, training_prompts: Sequence[TokenIds], dim: int = TFIDF_DIM) -> None:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.pipeline import make_pipeline

        grams = TfidfVectorizer(
            analyzer=token_grams, min_df=min(MIN_DOCUMENTS, len(training_prompts)), sublinear_tf=True
        )
        matrix = grams.fit_transform(training_prompts)
        self.dim = min(dim, matrix.shape[1] - 1, matrix.shape[0] - 1)
        svd = TruncatedSVD(self.dim, random_state=0).fit(matrix)
        self._pipeline = make_pipeline(grams, svd)

    def embed(
        self, token_ids: Sequence[TokenIds], *, prefix_ids: Sequence[int], on_prompts: Callable[[int], None]
    ) -> torch.Tensor:
        vectors = self._pipeline.transform(list(token_ids))
        on_prompts(len(token_ids))
        return torch.from_numpy(vectors.astype(np.float32))


def token_grams(ids: TokenIds) -> list[int]:
    """Uni- and bigrams of token ids, each as one number."""
    tokens = ids.astype(np.int64)
    return [*tokens.tolist(), *((tokens[:-1] + 1 << 32) + tokens[1:]).tolist()]


def embed_control(
    dataset: Dataset,
    out: Path,
    control: Control,
    config: EmbedConfig,
    *,
    like: Path,
    splits: Iterable[str] = SPLITS,
    progress: bool = True,
) -> EmbedReport:
    """Fills the store at ``out`` with the control's vectors for the same prompts as those of the store ``like``."""
    reference = LatentStore.open(like)
    encoder = prompt_encoder(config, load_tokenizer(config.model), dataset)
    provenance: dict[str, Any] = {"control": control, "prompts": reference.hash}
    embedder: RandomControl | TfidfControl
    if control == "random":
        sample = reference.take(np.arange(min(len(reference), 4096)))
        embedder = RandomControl(reference.dim, float(np.linalg.norm(sample, axis=1).mean()))
        provenance["norm"] = round(embedder.norm, 3)
    else:
        embedder = TfidfControl(distinct_prompts(dataset, "train", encoder))
        provenance["fitted_on"] = [dataset.fingerprint("train"), model_fingerprint(config.model)]
    store = LatentStore.create(out, {**provenance, "dim": embedder.dim})
    return fill_store(store, dataset, encoder, embedder, splits=splits, titles=config.titles, progress=progress)


def distinct_prompts(dataset: Dataset, split: str, encoder: PromptEncoder) -> list[TokenIds]:
    prompts = {prompt_digest(ids): ids for _, shard in shard_prompts(dataset, split, encoder) for ids in shard}
    return list(prompts.values())
