"""From a training run to a bundle: towers, index, engine, prompts, and probabilities fitted on the valid split.

The query tower was trained on the latent queries of a store. Where an engine made them, that engine goes into the
bundle; where transformers did, an engine is built of the same model, calibrated on the dataset's training prompts.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rgalign.bundle.manifest import Calibration, Manifest, ReasonerPart
from rgalign.bundle.showing import show_threshold
from rgalign.bundle.write import BundleParts, write_bundle
from rgalign.config import load_config
from rgalign.data.dataset import Dataset
from rgalign.errors import ConfigError, DataError
from rgalign.index.precision import Precision
from rgalign.metrics.calibration import fit_scale, top_intent
from rgalign.prompt import PromptEncoder
from rgalign.reasoner.engine.artifact import read_manifest
from rgalign.reasoner.engine.build import build_engine
from rgalign.reasoner.engine.quantize import EngineDtype
from rgalign.reasoner.pretrained import load_tokenizer, model_fingerprint
from rgalign.scoring import projection_of
from rgalign.training.embed import EMBED_CONFIG, EmbedConfig, calibration_on, prompt_encoder
from rgalign.training.experiment import run_config
from rgalign.training.index_build import index_of
from rgalign.training.latents import LatentStore
from rgalign.training.ranker_files import LoadedRanker, load_ranker
from rgalign.training.ranker_scores import score_split

DEFAULT_DTYPE: EngineDtype = "int8a12"
SHOW_PRECISION = 0.1


def build_bundle(
    run: Path,
    out: Path,
    *,
    engine_dtype: EngineDtype | None = None,
    precision: Precision = "float32",
    show_precision: float = SHOW_PRECISION,
) -> Manifest:
    """Writes the bundle of a finished run.

    Args:
        engine_dtype: of the engine; None: the one that made the latent queries, else int8a12.
        precision: of the index's vectors.
        show_precision: share of validation sessions in which the top intent must be the one for intents to be shown.

    Raises:
        ConfigError: ``out`` exists, or a run that cannot be served: its reasoner's pooling, a query tower that does not
            fold, an engine of another dtype than the one its latent queries were made with.
        ProvenanceError: parts that do not belong together. DataError: no threshold reaches ``show_precision``.
    """
    config, loaded = run_config(run), load_ranker(run)
    dataset = Dataset.open(config.dataset)
    loaded.require_dataset(dataset)
    store = None
    if loaded.latents is not None:
        if config.latents is None:
            raise ConfigError(where=f"{run}/config.yaml", required="latents", received="none")
        store = LatentStore.open(config.latents)
        loaded.require_latents(store)
    ranker = loaded.ranker
    tied = bool(getattr(getattr(loaded.config, "user", None), "tie_intents", False))
    common: dict[str, Any] = {
        "schema": loaded.schema,
        "catalog": loaded.catalog,
        "statistics": loaded.encoder.stats,
        "ranker": loaded.hash,
        "model": loaded.config,
        "index": index_of(loaded, precision),
        "user_tower": ranker.user_tower,
        "intent_table": ranker.intent_tower.fields.table.weight if tied else None,  # type: ignore[union-attr]
        "user_only": calibrate(loaded, dataset, None, show_precision),
    }
    if store is None:
        return write_bundle(BundleParts(omega=1.0, **common), out)
    assert ranker.query_tower is not None
    projection = projection_of(ranker.query_tower)
    full = calibrate(loaded, dataset, store, show_precision)
    embedding = load_config(EmbedConfig, store.path / EMBED_CONFIG)
    tokenizer = load_tokenizer(embedding.model)
    prompts = prompt_encoder(embedding, tokenizer, dataset)
    with TemporaryDirectory() as temporary:
        engine = _engine(store, embedding, engine_dtype, dataset, Path(temporary) / "engine")
        file = Path(temporary) / "tokenizer.json"
        tokenizer.backend_tokenizer.save(str(file))
        parts = BundleParts(
            omega=float(ranker.omega),
            projection=projection,
            reasoner=_reasoner_part(embedding, engine, prompts, tokenizer, store),
            engine=engine,
            tokenizer=file,
            full=full,
            **common,
        )
        return write_bundle(parts, out)


def calibrate(loaded: LoadedRanker, dataset: Dataset, store: LatentStore | None, precision: float) -> Calibration:
    """Scale and threshold of the scores of the valid split, whole catalogue; ``store`` None: at ω = 1.

    Raises:
        DataError: no validation session with a click, or no threshold that reaches the precision.
    """
    scores = score_split(loaded, dataset, "valid", store)
    clicked: NDArray[np.integer[Any]] = scores.clicked
    scale = fit_scale(scores.total, clicked)
    top = top_intent(scores.total, clicked, None, scale)
    return Calibration(scale=scale, threshold=show_threshold(top.probability, top.outcome, precision))


def _engine(
    store: LatentStore, embedding: EmbedConfig, dtype: EngineDtype | None, dataset: Dataset, building: Path
) -> Path:
    """The directory of the engine that goes into the bundle."""
    if embedding.pooling not in ("ltp", "eos"):
        raise ConfigError(where=str(store.path), required="pooling ltp or eos", received=repr(embedding.pooling))
    if embedding.backend == "engine":
        if dtype not in (None, embedding.engine_dtype):
            required = f"{embedding.engine_dtype}, whose latent queries the ranker was trained on"
            raise ConfigError(where="engine dtype", required=required, received=repr(dtype))
        directory = store.path / f"engine-{embedding.engine_dtype}"
        _require_same("engine", store, read_manifest(directory).hash)
        return directory
    _require_same("model", store, model_fingerprint(embedding.model))
    chosen = dtype or DEFAULT_DTYPE
    build_engine(embedding.model, building, chosen, calibration_on(dataset, embedding))
    return building


def _require_same(what: str, store: LatentStore, found: str) -> None:
    if store.provenance.get(what) != found:
        required = f"the {what} that made its latent queries ({str(store.provenance.get(what))[:12]})"
        raise DataError(where=str(store.path), required=required, received=found[:12])


def _reasoner_part(
    embedding: EmbedConfig, engine: Path, prompts: PromptEncoder, tokenizer: Any, store: LatentStore
) -> ReasonerPart:
    manifest = read_manifest(engine)
    return ReasonerPart(
        engine=manifest.hash,
        dtype=manifest.dtype,
        hidden_size=manifest.config.hidden,
        pooling="eos" if embedding.pooling == "eos" else "ltp",
        eos_token_id=tokenizer.eos_token_id,
        template=prompts.template,
        chat_format=prompts.chat_format.name,
        max_tokens=embedding.max_tokens,
        include_pii=embedding.include_pii,
        prompts=prompts.hash,
        trained_on=store.provenance,
    )
