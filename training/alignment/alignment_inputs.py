"""What an alignment run is made from: the selection as token ids, the split it is measured on, and hashes of it all."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from rgalign.config import load_config
from rgalign.data.dataset import Dataset
from rgalign.errors import ConfigError, ProvenanceError
from rgalign.reasoner.pretrained import load_tokenizer, model_fingerprint
from rgalign.training.alignment.alignment_config import AlignmentConfig, Objective
from rgalign.training.alignment.contrast_targets import ContrastTargets
from rgalign.training.alignment.policy import model_reference
from rgalign.training.alignment.preferences import Preferences, read_preferences
from rgalign.training.alignment.tokenised import TokenisedPreference, tokenise
from rgalign.training.embed import EMBED_CONFIG, EmbedConfig, prompt_encoder
from rgalign.training.latents import LatentStore

FORMAT = 1


@dataclass(frozen=True)
class AlignmentInputs:
    """``identity`` is what two starts must share to be one run; ``reference`` is where training begins."""

    config: AlignmentConfig
    objective: Objective
    dataset: Dataset
    embedding: EmbedConfig
    preferences: Preferences
    reference: str
    identity: dict[str, Any]

    @classmethod
    def open(cls, config: AlignmentConfig, objective: Objective) -> AlignmentInputs:
        """Reads and checks everything but the model's weights.

        Raises:
            ConfigError: latent queries that no prompt's state made.
            DataError, ProvenanceError: see :func:`read_preferences`.
            ModelNotFoundError: no such model.
        """
        dataset = Dataset.open(config.dataset)
        file = config.latents / EMBED_CONFIG
        if not file.is_file():
            required = f"latent queries with their {EMBED_CONFIG} (`rgalign embed` writes it)"
            raise ProvenanceError(where=str(config.latents), required=required, received="none")
        embedding = load_config(EmbedConfig, file)
        if objective == "contrast" and embedding.pooling != "ltp":
            required = "latent queries with pooling ltp for RG-CL (eq. 11 compares last-token states)"
            raise ConfigError(where=str(file), required=required, received=f"pooling {embedding.pooling}")
        preferences = read_preferences(
            config.selection, dataset, targets=config.targets, with_targets=objective == "contrast"
        )
        reference = model_reference(config, embedding.model)
        identity = {
            "format": FORMAT,
            "objective": objective,
            "config": config.identity(),
            "embedding": embedding.model_dump(mode="json", exclude={"model", "device", "max_batch_tokens"}),
            "base": model_fingerprint(embedding.model),
            "init": model_fingerprint(reference),
            **preferences.identity,
        }
        return cls(config, objective, dataset, embedding, preferences, reference, identity)

    def num_sessions(self, rows: list[TokenisedPreference]) -> int:
        """Distinct sessions of preferences, of which V4 may have two a session."""
        return len({self.preferences.items[each.row].session_id for each in rows})

    def sessions(self) -> tuple[list[TokenisedPreference], list[TokenisedPreference]]:
        """Training and held-out sessions.

        Raises:
            ConfigError: a model without a chat format, or a held-out share that leaves nothing to train on.
            DataError: a query without tokens.
        """
        tokenizer = load_tokenizer(self.reference)
        encoder = prompt_encoder(self.embedding, tokenizer, self.dataset)
        rejected = self.config.dpo.max_rejected
        sessions = tokenise(self.preferences, self.dataset, encoder, tokenizer, max_rejected=rejected)
        apart = self._held_out(sessions)
        if self.objective == "dpo":
            sessions = [session for session in sessions if session.rejected]
        trained = [session for session in sessions if session.row not in apart]
        if not trained:
            required = "a session to train on" + (" with a rejected query" if self.objective == "dpo" else "")
            raise ConfigError(where=str(self.config.selection), required=required, received="none")
        return trained, [session for session in sessions if session.row in apart]

    def prefix_ids(self, tokenizer: Any) -> tuple[int, ...]:
        return prompt_encoder(self.embedding, tokenizer, self.dataset).prefix_ids

    def targets(self, trained: list[TokenisedPreference], hidden_size: int) -> ContrastTargets | None:
        """The frozen targets, if the selection has them.

        Raises:
            ProvenanceError: targets of another width than the model's states, where the loss needs them.
        """
        targets = self.preferences.targets
        if targets is None:
            return None
        if targets.shape[1] != hidden_size:
            if self.objective != "contrast":
                return None
            required = f"targets of the reasoner itself ({hidden_size} wide)"
            raise ProvenanceError(where="targets", required=required, received=f"{targets.shape[1]} wide")
        rows = [session.row for session in trained]
        config, items = self.config, self.preferences.items
        store = LatentStore.open(config.latents)
        sessions = store.rows(self.dataset, self.preferences.split)
        latents = store.take(sessions[[items[row].split_row for row in rows]])
        return ContrastTargets(targets, latents, items, rows, config.contrast, seed=config.seed)

    def _held_out(self, sessions: list[TokenisedPreference]) -> set[int]:
        """Rows of sessions chosen by a hash of their ids: the same for every objective and seed."""
        name = {session.row: self.preferences.items[session.row].session_id for session in sessions}
        names = sorted(set(name.values()), key=_draw)
        if not self.config.held_out or len(names) < 2:
            return set()
        count = max(1, round(self.config.held_out * len(names)))
        apart = set(names[: min(count, self.config.max_held_out)])
        return {row for row in name if name[row] in apart}


def _draw(session_id: str) -> int:
    return int(np.frombuffer(blake2b(session_id.encode(), digest_size=8).digest(), "<u8")[0])
