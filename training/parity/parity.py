"""rgalign engine parity: every engine against the definition, on the same prompts, through the same ranker.

out/vectors/<engine>/     latent stores; an interrupted run goes on there, a finished one is read
out/engine-<dtype>/       engines built for the comparison
out/layers/               where each 8-bit engine's error enters
out/parity.json           what is printed, with the limits and what is beyond them
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from rich.progress import Progress

from rgalign.config import load_config
from rgalign.data.dataset import Dataset
from rgalign.errors import ConfigError, ProvenanceError
from rgalign.files import read_json, sha256_json, write_json
from rgalign.reasoner.engine.artifact import read_manifest
from rgalign.reasoner.engine.offline import engine_beside
from rgalign.reasoner.engine.quantize import EngineDtype
from rgalign.reasoner.engine.reasoner import EnginePooling, load_engine
from rgalign.reasoner.hf import HFReasoner, Pooling
from rgalign.reasoner.other_engines import load_other_engine
from rgalign.reasoner.pretrained import load_tokenizer, model_fingerprint
from rgalign.reasoner.protocol import Reasoner
from rgalign.reasoner.quantized_checkpoint import INFO
from rgalign.training.embed import EMBED_CONFIG, EmbedConfig, calibration_on, prompt_encoder, store_provenance
from rgalign.training.experiment import run_config
from rgalign.training.latents import prompt_digest
from rgalign.training.parity.config import Candidate, ParityConfig, candidates
from rgalign.training.parity.gate import breaches
from rgalign.training.parity.layers import LayerError, layer_errors, read_layers, write_layers
from rgalign.training.parity.ranking import compared, rank_with, reference_metrics, users_of
from rgalign.training.parity.vectors import Prompts, Vectors, closeness, prompts_of, vectors_of
from rgalign.training.ranker_files import LoadedRanker, load_ranker
from rgalign.training.sessions import evenly_spaced

if TYPE_CHECKING:
    from rgalign.reasoner.engine.cuda.matrix import CudaDtype

REFERENCE = "hf"
REPORT = "parity.json"
SAME = 0.99999  # cosine of a definition's vector from a store and computed again
Report = dict[str, Any]


@dataclass(frozen=True)
class Sources:
    """What is compared on.

    Args:
        ranker: finished training run; None compares vectors only.
        latents: store that says how its prompts were made, and has some of the definition's vectors; None: the run's.
        reuse: further stores whose vectors are taken where their provenance is the same.
    """

    dataset: Path
    ranker: Path | None = None
    latents: Path | None = None
    reuse: tuple[Path, ...] = ()


def check_parity(
    model: str,
    sources: Sources,
    out: Path,
    config: ParityConfig = ParityConfig(),  # noqa: B008 frozen
    extra: Sequence[Candidate] = (),
    *,
    progress: bool = True,
) -> Report:
    """Compares, writes ``out/parity.json`` and returns what it holds; ``passed`` is false beyond a limit.

    Args:
        model: see :mod:`rgalign.reasoner.pretrained`.
        extra: engines besides those of ``config.engines``.

    Raises:
        ConfigError: a ranker without latent queries, a pooling that engines do not have.
        ProvenanceError: a ranker, store or engine of another model or template; stored vectors that are not the
            model's.
        DataError: no sessions or no clicks, a damaged engine, vectors that are not finite.
    """
    loaded, embedding = _ranker_and_prompts(model, sources, config)
    dataset = Dataset.open(sources.dataset)
    reference = HFReasoner.from_pretrained(
        model, pooling=cast(Pooling, embedding.pooling), max_batch_tokens=config.max_batch_tokens
    )
    encoder = prompt_encoder(embedding, reference.tokenizer, dataset)
    provenance = store_provenance(reference, encoder, embedding)
    _require_prompts_of(loaded, provenance)
    prompts = prompts_of(
        dataset, config.split, encoder, evenly_spaced(dataset.num_rows(config.split), config.max_sessions)
    )
    reuse = [path for path in (_store_of(sources), *sources.reuse) if path is not None]
    exact, reused = vectors_of(
        reference, prompts, provenance, out / "vectors" / REFERENCE, reuse=reuse, label=REFERENCE, progress=progress
    )
    if reused:
        _require_definition(reference, prompts, exact, config.checked_prompts)

    vectors = {REFERENCE: exact}
    engines: list[Report] = []
    for candidate in candidates(config, extra):
        reasoner = load_candidate(candidate, model, embedding, dataset, out, config.max_batch_tokens)
        found = {**provenance, **reasoner.provenance, "dim": reasoner.hidden_size}
        own = out / "vectors" / candidate.name
        vectors[candidate.name], _ = vectors_of(
            reasoner, prompts, found, own, reuse=reuse, label=candidate.name, progress=progress
        )
        engines.append(
            {
                "name": candidate.name,
                "dtype": candidate.dtype,
                "provenance": found,
                "closeness": asdict(closeness(vectors[candidate.name], exact)),
            }
        )
        if candidate.backend == "engine" and candidate.dtype != "fp32" and config.layer_prompts:
            directory = candidate.source or out / f"engine-{candidate.dtype}"
            errors = _layers(reference.model, directory, prompts, config.layer_prompts, out, candidate.name, progress)
            engines[-1]["layers"] = [asdict(error) for error in errors]
    report = {
        "model": model,
        "fingerprint": provenance["model"],
        "dataset": str(sources.dataset),
        "split": config.split,
        "sessions": len(prompts.rows),
        "prompts": len(prompts.ids),
        "template": encoder.template.name,
        "k": config.k,
        "ranker": None if loaded is None else {"path": str(sources.ranker), "hash": loaded.hash},
        "definition": {"provenance": provenance, "reused": reused},
        "engines": engines,
        "config": config.model_dump(mode="json"),
    }
    if loaded is not None:
        _add_ranking(report, loaded, dataset, prompts, vectors, config)
    for engine in engines:
        limits = config.limits[engine["dtype"]]
        engine["limits"] = limits.model_dump()
        engine["breaches"] = breaches(limits, engine)
    report["passed"] = not any(engine["breaches"] for engine in engines)
    write_json(out / REPORT, report)
    return report


def load_candidate(
    candidate: Candidate, model: str, embedding: EmbedConfig, dataset: Dataset, out: Path, max_batch_tokens: int
) -> Reasoner:
    """The engine to compare; our own are built in ``out``, as ``rgalign embed`` does, unless a directory is given.

    Raises:
        ProvenanceError: an engine of another model or type.
        ConfigError: no engine for a GPU, no GPU, or an engine of a type that it does not compute.
        EngineUnavailableError, EngineError: another engine that is not installed, or did not start.
    """
    if candidate.backend == "cuda":
        return _given_engine_on_gpu(candidate, model, embedding)
    if candidate.backend != "engine":
        if candidate.source is not None:
            _require_made_of(candidate.source, model)
        ref = model if candidate.source is None else str(candidate.source)
        return load_other_engine(
            candidate.backend, ref, candidate.dtype, pooling=embedding.pooling, max_tokens=embedding.max_tokens
        )
    dtype = cast(EngineDtype, candidate.dtype)
    if candidate.source is None:
        return engine_beside(
            out,
            model,
            dtype,
            pooling=embedding.pooling,
            max_batch_tokens=max_batch_tokens,
            calibration=lambda: calibration_on(dataset, embedding),
        )
    return _given_engine(candidate.source, model, dtype, embedding, max_batch_tokens)


def _require_made_of(checkpoint: Path, model: str) -> None:
    """A checkpoint that `rgalign engine build --for` wrote says which model it was made of; others cannot be told."""
    if not (checkpoint / INFO).is_file():
        return
    required, received = model_fingerprint(model), read_json(checkpoint / INFO)["model"]
    if required != received:
        raise ProvenanceError(where=f"checkpoint {checkpoint}", required=f"model {required}", received=received)


def _given_engine(directory: Path, model: str, dtype: str, embedding: EmbedConfig, max_batch_tokens: int) -> Reasoner:
    manifest = read_manifest(directory)
    for what, required, received in (
        ("dtype", dtype, manifest.dtype),
        ("model", model_fingerprint(model), manifest.model),
    ):
        if required != received:
            raise ProvenanceError(where=f"engine {directory}", required=f"{what} {required}", received=received)
    return load_engine(
        directory,
        torch.get_num_threads(),
        tokenizer=load_tokenizer(model),
        pooling=cast(EnginePooling, embedding.pooling),
        max_batch_tokens=max_batch_tokens,
    )


def _given_engine_on_gpu(candidate: Candidate, model: str, embedding: EmbedConfig) -> Reasoner:
    from rgalign.reasoner.engine.cuda.reasoner import load_cuda_engine  # wants Triton

    directory = candidate.source
    if directory is None:
        raise ConfigError(where="--with cuda", required="=DIRECTORY of a built engine", received="none")
    required, received = model_fingerprint(model), read_manifest(directory).model
    if required != received:
        raise ProvenanceError(where=f"engine {directory}", required=f"model {required}", received=received)
    return load_cuda_engine(
        directory,
        dtype=cast("CudaDtype", candidate.dtype),
        tokenizer=load_tokenizer(model),
        pooling=cast(EnginePooling, embedding.pooling),
    )


def _ranker_and_prompts(model: str, sources: Sources, config: ParityConfig) -> tuple[LoadedRanker | None, EmbedConfig]:
    """The ranker, and how prompts are made: as for its latent queries."""
    loaded = None if sources.ranker is None else load_ranker(sources.ranker)
    if loaded is not None and (loaded.latents is None or loaded.ranker.query_tower is None):
        required = "a ranker that was trained on latent queries"
        raise ConfigError(where=str(sources.ranker), required=required, received="none (ω = 1)")
    store = _store_of(sources)
    embedding = (
        EmbedConfig(template=config.template) if store is None else load_config(EmbedConfig, store / EMBED_CONFIG)
    )
    if embedding.pooling == "external":
        required = "pooling ltp or eos, which engines have"
        raise ConfigError(where=str(store), required=required, received=embedding.pooling)
    # The definition: transformers in float32, whatever made the store.
    return loaded, embedding.model_copy(
        update={"model": model, "backend": "hf", "dtype": "float32", "store_dtype": "float32"}
    )


def _store_of(sources: Sources) -> Path | None:
    if sources.latents is not None or sources.ranker is None:
        return sources.latents
    return run_config(sources.ranker).latents


def _require_prompts_of(loaded: LoadedRanker | None, provenance: dict[str, Any]) -> None:
    """The ranker's own latent queries may be another type's, but of the same model and prompts."""
    if loaded is None or loaded.latents is None:
        return
    for key in ("model", "pooling", "template", "chat_format", "frame"):
        ours, theirs = provenance.get(key), loaded.latents.get(key)
        if ours != theirs:
            raise ProvenanceError(where="ranker", required=f"latent queries of {key} {theirs!r}", received=repr(ours))


def _require_definition(reference: HFReasoner, prompts: Prompts, exact: Vectors, count: int) -> None:
    chosen = prompts.spread(count)
    fresh = reference.embed([prompts.ids[index] for index in chosen], prefix_ids=prompts.prefix_ids)
    cosines = torch.nn.functional.cosine_similarity(fresh, torch.from_numpy(exact[chosen]))
    if not bool((cosines >= SAME).all()):
        required = f"vectors of this model (cosine >= {SAME} to those computed again)"
        raise ProvenanceError(where="reused latent queries", required=required, received=f"{float(cosines.min()):.6f}")


def _layers(
    model: Any, engine: Path, prompts: Prompts, count: int, out: Path, name: str, progress: bool
) -> list[LayerError]:
    """Read where they have been computed for the same engine and prompts."""
    chosen = [prompts.whole(index) for index in prompts.spread(count)]
    if len(chosen) < 2:
        return []
    key = sha256_json([read_manifest(engine).hash, [prompt_digest(ids).hex() for ids in chosen]])
    path = out / "layers" / f"{name}-{key[:12]}.csv"
    if not path.is_file():
        with Progress(disable=not progress) as bar:
            task = bar.add_task(f"{name}, layers", total=len(chosen))
            errors = layer_errors(model, engine, chosen, on_prompt=lambda: bar.advance(task))
        write_layers(path, errors)
    return read_layers(path)


def _add_ranking(
    report: Report,
    loaded: LoadedRanker,
    dataset: Dataset,
    prompts: Prompts,
    vectors: dict[str, Vectors],
    config: ParityConfig,
) -> None:
    users = users_of(dataset, config.split, prompts.rows)
    ranked = rank_with(loaded, dataset, config.split, prompts, vectors, config.k)
    exact = ranked[REFERENCE]
    report["definition"]["metrics"] = reference_metrics(exact, config.k, users, config.resampling)
    for engine in report["engines"]:
        engine["ranking"] = compared(ranked[engine["name"]], exact, config.k, users, config.resampling)
