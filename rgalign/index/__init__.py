"""IntentIndex: the catalogue's unit vectors, ready to be scored, on disk and under a running service.

index = build_index(ids, titles, vectors, provenance);  write_index(index, path);  index = read_index(path)
holder = IndexHolder(index);  index = holder.current;  holder.swap(other)

The names are imported on first use: ``precision`` needs neither the C++ part nor pydantic, which a machine that only
measures kernels does not have.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rgalign.index.changes import IndexChanges as IndexChanges
    from rgalign.index.changes import add_intents as add_intents
    from rgalign.index.changes import compare as compare
    from rgalign.index.holder import IndexHolder as IndexHolder
    from rgalign.index.intent_index import IntentIndex as IntentIndex
    from rgalign.index.intent_index import build_index as build_index
    from rgalign.index.storage import read_index as read_index
    from rgalign.index.storage import write_index as write_index

_HOMES = {
    "IndexChanges": "changes",
    "IndexHolder": "holder",
    "IntentIndex": "intent_index",
    "add_intents": "changes",
    "build_index": "intent_index",
    "compare": "changes",
    "read_index": "storage",
    "write_index": "storage",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
