"""The bundles that both services load: of a training run, of a bundle that is there, or of a few simulated sessions.

Speed depends on the template, not on what the weights have learned. So a template that the ranker was not trained with
is measured with the same weights: its bundle differs from the given one in the words round the slots and in nothing
else, and both services answer from it alike.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from rgalign.bundle import Bundle, read_bundle
from rgalign.bundle.manifest import TOKENIZER
from rgalign.bundle.write import BundleParts, write_bundle
from rgalign.chat_format import TEMPLATES
from rgalign.data.dataset import Dataset
from rgalign.data.simulator import SimulatorConfig, simulate
from rgalign.errors import ConfigError
from rgalign.prompt import PromptEncoder
from rgalign.training.bundle_build import build_bundle
from rgalign.training.embed import EmbedConfig, embed_dataset
from rgalign.training.stage1 import Stage1Config, train_stage1

OWN = "own"  # the bundle's own template
SIMULATED_SESSIONS, SIMULATED_INTENTS = 300, 220


def bundles(
    templates: list[str], work: Path, *, bundle: Path | None = None, run: Path | None = None, model: str = "smollm2"
) -> dict[str, Path]:
    """Template -> directory of its bundle. What an earlier call made in ``work`` is used again.

    Args:
        templates: names in TEMPLATES, or ``own``.
        bundle, run: one of them, or neither: then simulated sessions are read by ``model`` and a ranker is trained on
            them for an epoch (two minutes).

    Raises:
        ConfigError: both are given.
    """
    if bundle is not None and run is not None:
        raise ConfigError(where="end_to_end", required="--bundle or --run", received="both")
    if bundle is None:
        bundle = run_bundle(run, work) if run is not None else simulated_bundle(work, model)
    given = read_bundle(bundle)
    return {name: bundle if name == OWN else retemplated(given, name, work) for name in templates}


def run_bundle(run: Path, work: Path) -> Path:
    """Of a finished training run with latent queries."""
    out = work / f"bundle-{run.resolve().name}"
    if not out.is_dir():
        build_bundle(run, out)
    return out


def simulated_bundle(work: Path, model: str) -> Path:
    """Of SIMULATED_SESSIONS sessions of the simulator."""
    out = work / "bundle-simulated"
    if out.is_dir():
        return out
    data, latents, run = (work / f"simulated-{name}" for name in ("data", "latents", "run"))
    if not data.is_dir():
        simulate(SimulatorConfig(num_sessions=SIMULATED_SESSIONS, num_intents=SIMULATED_INTENTS), data)
    embedding = EmbedConfig(model=model, template="prefix_cached", backend="engine", engine_dtype="int8a12")
    embed_dataset(Dataset.open(data), latents, embedding)
    settings = {
        "dataset": str(data),
        "latents": str(latents),
        "model": {"model": "qe_rec"},
        "epochs": 1,
        "batch_size": 64,
    }
    train_stage1(Stage1Config.model_validate(settings), run)
    build_bundle(run, out, show_precision=0.0)
    return out


def retemplated(given: Bundle, template: str, work: Path) -> Path:
    """The bundle with another template.

    Raises:
        ConfigError: a bundle without a reasoner, or prompts that would not fit its longest.
    """
    part = given.manifest.reasoner
    if part is None:
        raise ConfigError(where=str(given.path), required="a bundle with a reasoner", received="one without")
    out = work / f"bundle-{template}-{given.hash[:12]}"
    if out.is_dir():
        return out
    tokenizer = given.path / TOKENIZER
    prompts = PromptEncoder(
        Tokenizer.from_file(str(tokenizer)),
        given.schema,
        given.catalog,
        template=TEMPLATES[template],
        chat_format=part.chat_format,
        max_tokens=part.max_tokens,
        include_pii=part.include_pii,
    )
    parts = BundleParts(
        schema=given.schema,
        catalog=given.catalog,
        statistics=given.encoder.stats,
        ranker=given.manifest.ranker,
        model=given.manifest.model,
        omega=given.manifest.omega,
        index=given.index,
        user_tower=given.user_tower,
        intent_table=given.intent_table,
        user_only=given.manifest.user_only,
        projection=given.projection,
        reasoner=part.model_copy(update={"template": prompts.template, "prompts": prompts.hash}),
        engine=given.engine,
        tokenizer=tokenizer,
        full=given.manifest.full,
    )
    write_bundle(parts, out)
    return out
