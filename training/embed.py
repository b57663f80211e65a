"""Dataset -> latent queries (stage 0): every distinct prompt through the frozen reasoner once.

One wave a shard: verbalise and tokenise its sessions, look up the digests that the store has, compute the others in
lexicographic order (so that prompts which begin alike share their beginning), write them chunk by chunk.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rgalign.chat_format import PromptTemplate
from rgalign.config import Config, dump_config
from rgalign.data.dataset import SPLITS, Dataset, read_shard
from rgalign.errors import ConfigError
from rgalign.files import sha256_json
from rgalign.models.text_encoder import SentenceEncoder
from rgalign.prompt import PromptEncoder
from rgalign.reasoner.engine.build import Calibration
from rgalign.reasoner.engine.checkpoint import is_supported
from rgalign.reasoner.engine.offline import engine_beside
from rgalign.reasoner.engine.quantize import EngineDtype
from rgalign.reasoner.engine.reasoner import POOLINGS, EngineReasoner
from rgalign.reasoner.external import ExternalReasoner
from rgalign.reasoner.hf import HFReasoner, Pooling
from rgalign.reasoner.other_engines import OTHER_DTYPES, OtherReasoner, load_other_engine
from rgalign.reasoner.prefix_tree import TokenIds
from rgalign.reasoner.pretrained import DEFAULT_MODEL, load_tokenizer
from rgalign.training.latents import LatentStore, prompt_digest
from rgalign.training.ray_embedder import RayActors, RayEmbedder
from rgalign.training.title_latents import TEXTS, title_prompts

CHUNK_PROMPTS = 256  # what an interrupted run loses at most
VERBALIZE_ROWS = 4096
CALIBRATION_PROMPTS = 32
EMBED_CONFIG = "embed.yaml"  # in the store: how to make more vectors like these

logger = logging.getLogger(__name__)


class EmbedConfig(Config):
    """How a dataset becomes latent queries.

    Args:
        model: ``smollm2``, a directory, a GGUF file or a hub name.
        pooling: ``ltp`` the last prompt token's state; ``mean``, ``eos``: other states; ``external``: the model decodes
            a question of at most ``max_new_tokens``, which ``sentence_encoder`` turns into the vector.
        titles: the intents' own words too, see title_latents.py; for rankers with ``loss.title_weight``.
        max_batch_tokens: new tokens of one forward pass; None: 1024 on the engine, elsewhere 256 (transformers' mask of
            a pack grows with the square).
        backend: ``hf`` the definition, or ``engine``: rgalign's own on a CPU, built once into the store's directory in
            ``engine_dtype``; its vectors are another provenance. ``auto``: ``engine`` where it computes this, else
            ``hf``; the store's configuration says which. ``vllm``, ``tensorrt_llm``: on a GPU, in one of their own
            ``engine_dtype``; for int8 ``model`` is what ``rgalign engine build --for`` wrote.
    """

    model: str = DEFAULT_MODEL
    template: str | PromptTemplate = "paper"
    chat_format: str | None = None
    max_tokens: int = 512
    include_pii: bool = False
    pooling: Pooling | Literal["external"] = "ltp"
    sentence_encoder: str = "minilm"
    max_new_tokens: int = 24
    titles: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    store_dtype: Literal["float32", "float16"] = "float32"
    max_batch_tokens: int | None = Field(default=None, ge=1)
    device: str = "cpu"
    backend: Literal["auto", "hf", "engine", "vllm", "tensorrt_llm"] = "auto"
    engine_dtype: EngineDtype | Literal["bf16", "fp16", "fp8"] = "fp32"

    @property
    def pack_tokens(self) -> int:
        """``max_batch_tokens``, or the backend's own (bench/NOTES.md); the backend is decided."""
        return self.max_batch_tokens or (1024 if self.backend == "engine" else 256)


Reasoner = HFReasoner | ExternalReasoner | EngineReasoner | OtherReasoner


class Embedder(Protocol):
    """What turns prompts into vectors: a reasoner, or a control in its place."""

    def embed(
        self, token_ids: Sequence[TokenIds], *, prefix_ids: Sequence[int], on_prompts: Callable[[int], None]
    ) -> torch.Tensor: ...


@dataclass
class EmbedReport:
    """What one run did: ``prompt_tokens`` in all computed prompts, ``computed_tokens`` after sharing beginnings."""

    sessions: int = 0
    distinct_prompts: int = 0
    prompt_tokens: int = 0
    seconds: float = 0.0
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def prompts_per_s(self) -> float:
        return self.distinct_prompts / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_s(self) -> float:
        return self.prompt_tokens / self.seconds if self.seconds else 0.0


def with_backend(config: EmbedConfig) -> EmbedConfig:
    """The same with ``auto`` decided."""
    if config.backend != "auto":
        return config
    exact = config.device == "cpu" and config.dtype == "float32" and config.pooling in POOLINGS
    backend = "engine" if exact and is_supported(config.model, config.max_tokens) else "hf"
    return config.model_copy(update={"backend": backend})


def load_reasoner(config: EmbedConfig, store: Path | None = None, dataset: Dataset | None = None) -> Reasoner:
    """The reasoner of an embedding.

    Args:
        store: directory of its latent queries, where its engine is; None: an uncalibrated engine in the cache.
        dataset: on whose training prompts an engine that must be built is calibrated.
    """
    config = with_backend(config)
    if config.backend == "engine":
        return engine_beside(
            store,
            config.model,
            cast(EngineDtype, config.engine_dtype),
            pooling=config.pooling,
            max_batch_tokens=config.pack_tokens,
            calibration=lambda: None if dataset is None else calibration_on(dataset, config),
        )
    if config.backend == "vllm" or config.backend == "tensorrt_llm":
        return load_other_engine(
            config.backend, config.model, config.engine_dtype, pooling=config.pooling, max_tokens=config.max_tokens
        )
    external = config.pooling == "external"
    reasoner = HFReasoner.from_pretrained(
        config.model,
        dtype=getattr(torch, config.dtype),
        pooling="ltp" if external else cast(Pooling, config.pooling),
        max_batch_tokens=config.pack_tokens,
    )
    reasoner.model.to(config.device)
    if not external:
        return reasoner
    encoder = SentenceEncoder.from_pretrained(config.sentence_encoder)
    return ExternalReasoner(reasoner, encoder, max_new_tokens=config.max_new_tokens)


def calibration_on(dataset: Dataset, config: EmbedConfig) -> Calibration | None:
    """Training prompts, or None of a dataset without any."""
    encoder = prompt_encoder(config, load_tokenizer(config.model), dataset)
    _, prompts = next(shard_prompts(dataset, "train", encoder), ("", []))
    return Calibration.of(encoder, prompts, count=CALIBRATION_PROMPTS) if prompts else None


def prompt_encoder(config: EmbedConfig, tokenizer: Any, dataset: Dataset) -> PromptEncoder:
    return PromptEncoder(
        tokenizer,
        dataset.schema,
        dataset.catalog,
        template=config.template,
        chat_format=config.chat_format,
        max_tokens=config.max_tokens,
        include_pii=config.include_pii,
    )


def store_provenance(reasoner: Reasoner, encoder: PromptEncoder, config: EmbedConfig) -> dict[str, Any]:
    """What must agree for two vectors to be comparable. The tokenizer is among the files behind ``model``."""
    return {
        **reasoner.provenance,
        "template": encoder.template.name,
        "chat_format": encoder.chat_format.name,
        "frame": sha256_json([encoder.prefix_ids, encoder.suffix_ids]),
        "store_dtype": config.store_dtype,
        "dim": reasoner.hidden_size,
    }


def embed_dataset(
    dataset: Dataset,
    out: Path,
    config: EmbedConfig,
    *,
    splits: Iterable[str] = SPLITS,
    progress: bool = True,
    actors: RayActors | None = None,
) -> EmbedReport:
    """Embeds all sessions of the splits into the store at ``out``; what is there already is not computed again.

    Args:
        actors: compute with Ray; None computes here.
    """
    config = with_backend(config)
    if actors is not None and config.backend in OTHER_DTYPES:  # driver and actors would want the same GPU
        raise ConfigError(where="--ray", required="backend hf or engine", received=config.backend)
    reasoner = load_reasoner(config, out, dataset)
    encoder = prompt_encoder(config, reasoner.tokenizer, dataset)
    store = LatentStore.create(out, store_provenance(reasoner, encoder, config))
    dump_config(config, out / EMBED_CONFIG)
    embedder: Embedder | RayEmbedder = reasoner
    if actors is not None:
        values = config.model_dump(mode="json") | ({"device": "cuda"} if actors.gpus else {})
        embedder = RayEmbedder(values, out, sha256_json(reasoner.provenance), reasoner.hidden_size, actors)
    return fill_store(
        store,
        dataset,
        encoder,
        embedder,
        config.store_dtype,
        splits=splits,
        titles=config.titles,
        progress=progress,
    )


def fill_store(
    store: LatentStore,
    dataset: Dataset,
    encoder: PromptEncoder,
    embedder: Embedder | RayEmbedder,
    store_dtype: str = "float32",
    *,
    splits: Iterable[str] = SPLITS,
    titles: bool = False,
    progress: bool = True,
) -> EmbedReport:
    """Computes what the store lacks of the dataset's splits (and titles), and writes their maps."""
    report = EmbedReport(provenance=store.provenance)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not progress) as bar:
        if titles and not store.has_titles(dataset.catalog):
            texts = title_prompts(dataset.catalog, encoder)
            found = _embed_shard(store, texts, encoder, embedder, store_dtype, report, bar, "intent titles")
            store.write_titles(dataset.catalog, found.reshape(-1, TEXTS))
        for split in splits:
            if not dataset.shards(split) or store.has_map(dataset, split):
                continue
            rows = [
                _embed_shard(store, prompts, encoder, embedder, store_dtype, report, bar, f"{split} {name}")
                for name, prompts in shard_prompts(dataset, split, encoder)
            ]
            store.write_map(dataset, split, np.concatenate(rows))
            report.sessions += sum(map(len, rows))
    return report


def shard_prompts(dataset: Dataset, split: str, encoder: PromptEncoder) -> Iterator[tuple[str, list[TokenIds]]]:
    """Each shard's name and its sessions' prompts below the constant prefix, in row order."""
    suffix = np.asarray(encoder.suffix_ids, dtype=np.int32)
    for shard in dataset.shards(split):
        table = read_shard(shard, dataset.schema.columns)
        prompts: list[TokenIds] = []
        for batch in table.to_batches(max_chunksize=VERBALIZE_ROWS):
            slots = encoder.encode_many(batch.to_pylist())
            prompts.extend(np.concatenate([ids, suffix]) for ids in slots)
        yield shard.name, prompts


def _embed_shard(
    store: LatentStore,
    prompts: list[TokenIds],
    encoder: PromptEncoder,
    embedder: Embedder | RayEmbedder,
    store_dtype: str,
    report: EmbedReport,
    bar: Progress,
    label: str,
) -> npt.NDArray[np.int64]:
    """Store rows of one shard's sessions."""
    task = bar.add_task(label, total=0, rate="")

    def advance(count: int) -> None:
        bar.advance(task, count)
        bar.update(task, rate=f"{bar.tasks[task].speed or 0.0:.1f} prompts/s")

    def begin(total: int) -> None:
        bar.update(task, total=total)

    filled = embed_prompts(store, prompts, encoder.prefix_ids, embedder, store_dtype, begin=begin, advance=advance)
    report.seconds += filled.seconds
    report.distinct_prompts += len(filled.embedded)
    report.prompt_tokens += sum(len(ids) + len(encoder.prefix_ids) for ids in filled.embedded)
    return filled.rows


@dataclass(frozen=True)
class Filled:
    """Args: rows: [n] of the store, of each prompt. embedded: prompts that were not there. seconds: spent on them."""

    rows: npt.NDArray[np.int64]
    embedded: list[TokenIds]
    seconds: float


def embed_prompts(
    store: LatentStore,
    prompts: Sequence[TokenIds],
    prefix_ids: Sequence[int],
    embedder: Embedder | RayEmbedder,
    store_dtype: str,
    *,
    begin: Callable[[int], None],
    advance: Callable[[int], None],
) -> Filled:
    """Computes the vectors that the store lacks, chunk by chunk, in the order in which prompts share most.

    Args:
        prompts: below the constant prefix.
        begin, advance: for a progress bar: how many will be computed, and how many more are done.
    """
    prefix = np.asarray(prefix_ids, dtype=np.int32)
    digests = [prompt_digest(np.concatenate([prefix, ids])) for ids in prompts]
    missing = {digest: ids for digest, ids in zip(digests, prompts, strict=True) if digest not in store.known}
    order = sorted(missing, key=lambda digest: missing[digest].astype(">u4").tobytes())
    begin(len(order))
    chunks = [order[start : start + CHUNK_PROMPTS] for start in range(0, len(order), CHUNK_PROMPTS)]
    began = time.perf_counter()
    waiting = [[missing[digest] for digest in chunk] for chunk in chunks]
    if isinstance(embedder, RayEmbedder):
        computed = embedder.embed_chunks(waiting, prefix_ids=prefix_ids, on_prompts=advance)
    else:
        computed = (embedder.embed(each, prefix_ids=prefix_ids, on_prompts=advance) for each in waiting)
    for chunk, latents in zip(chunks, computed, strict=True):
        store.append(chunk, latents.numpy().astype(store_dtype))
    rows = np.array([store.known[digest] for digest in digests], dtype=np.int64)
    return Filled(rows, [missing[digest] for digest in order], time.perf_counter() - began)
