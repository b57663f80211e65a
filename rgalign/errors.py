"""Typed errors. Each says where, what was required and what came."""

from __future__ import annotations


class RgalignError(Exception):
    """Base of every error this library raises for a caller's mistake."""

    def __init__(self, *, where: str, required: str, received: str) -> None:
        super().__init__(f"{where}: required {required}; received {received}")
        self.where = where
        self.required = required
        self.received = received


class SchemaError(RgalignError, ValueError):
    """A feature schema contradicts itself or the data it describes."""


class DataError(RgalignError, ValueError):
    """A row, file or array does not have the form its reader requires."""


class ConfigError(RgalignError, ValueError):
    """A configuration file or flag cannot be used."""


class ProvenanceError(RgalignError, ValueError):
    """Two artefacts do not belong together: another model, template, catalogue or dataset made one of them."""


class ModelNotFoundError(RgalignError, FileNotFoundError):
    """A pretrained model is not on this machine."""


class TeacherError(RgalignError, RuntimeError):
    """A teacher gives no further answer: unreachable, refused, or its quota or budget is spent. Answers are kept."""


class RewardError(RgalignError, ValueError):
    """The ranker cannot judge candidate queries: they failed the gate, or their rewards tell nothing apart."""
