"""Parts of TRL that alignment has its own form of, put in their place for as long as it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from trl.trainer import utils


@contextmanager
def replaced(name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """``trl.trainer.utils.name`` is ``make`` of itself. A TRL without that name stays as it is."""
    given = getattr(utils, name, None)
    if given is None:
        yield
        return
    setattr(utils, name, make(given))
    try:
        yield
    finally:
        setattr(utils, name, given)
