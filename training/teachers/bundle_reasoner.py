"""A bundle's reasoner as a teacher. Its engine makes latent queries and no words; the checkpoint it was built of does.

The words are the checkpoint's, in float32 and greedy, after exactly the prompt that the engine reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rgalign.bundle import Bundle
from rgalign.errors import ConfigError, ModelNotFoundError, ProvenanceError
from rgalign.reasoner.engine.artifact import read_manifest
from rgalign.reasoner.pretrained import load_causal_lm, model_fingerprint, resolve_model
from rgalign.training.teachers.local_teacher import Decoding, LocalTeacher
from rgalign.training.teachers.teacher import Context


def bundle_reasoner(bundle: Bundle, checkpoint: str | None = None) -> LocalTeacher:
    """The teacher; loads its model.

    Args:
        checkpoint: directory or name of the model; None: where the engine's was when it was built.

    Raises:
        ConfigError: a bundle without reasoner. ModelNotFoundError: no such model on this machine.
        ProvenanceError: another model than the engine's.
    """
    if bundle.prompts is None:
        raise ConfigError(where=str(bundle.path), required="a bundle with a reasoner", received="a ranker without one")
    engine = read_manifest(bundle.engine)
    ref = checkpoint or engine.source
    if checkpoint is None and engine.source.startswith("/") and not Path(engine.source).is_dir():
        required = "the checkpoint that the engine was built of (--checkpoint names it where it is now)"
        raise ModelNotFoundError(where="generated query", required=required, received=f"nothing at {engine.source}")
    found = model_fingerprint(resolve_model(ref))
    if found != engine.model:
        required = f"the engine's model {engine.model[:12]}"
        raise ProvenanceError(where=f"checkpoint {ref}", required=required, received=found[:12])
    model, tokenizer = load_causal_lm(ref)
    return LocalTeacher("reasoner", model, tokenizer, bundle.prompts, Decoding(), found)


def written_queries(teacher: LocalTeacher, contexts: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the teacher writes after each context's prompt; empty where it writes nothing."""
    answers = dict(teacher.generate([Context(row, context) for row, context in enumerate(contexts)]))
    return [answers[row].text for row in range(len(contexts))]
