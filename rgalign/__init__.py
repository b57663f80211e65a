"""rgalign: which intents did the user come for? Ranked from the context, before a word is typed.

The names below are imported on first use, so that ``import rgalign`` costs milliseconds and needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rgalign.data.dataset import Dataset as Dataset
    from rgalign.data.encode import SessionEncoder as SessionEncoder
    from rgalign.errors import RgalignError as RgalignError
    from rgalign.intents import IntentCatalog as IntentCatalog
    from rgalign.prompt import PromptEncoder as PromptEncoder
    from rgalign.recommender import Recommender as Recommender
    from rgalign.recommender import load as load
    from rgalign.schema import FeatureSchema as FeatureSchema

__version__ = "0.1.0"

_HOMES = {
    "Dataset": "rgalign.data.dataset",
    "FeatureSchema": "rgalign.schema",
    "IntentCatalog": "rgalign.intents",
    "PromptEncoder": "rgalign.prompt",
    "Recommender": "rgalign.recommender",
    "RgalignError": "rgalign.errors",
    "SessionEncoder": "rgalign.data.encode",
    "load": "rgalign.recommender",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
