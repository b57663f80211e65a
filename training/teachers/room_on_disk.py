"""A full disk as a typed error: where, and that the same command goes on once there is room."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rgalign.errors import DataError


@contextmanager
def room_on_disk(where: Path) -> Iterator[None]:
    """Raises DataError in place of the OSError of a full disk or quota; every other error passes."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        required = "room to write (what was finished is kept; free some and run the same command again)"
        raise DataError(where=str(where), required=required, received=str(error)) from error
