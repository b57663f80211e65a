"""A name in an admin request to a directory in the bundle root. No request holds a path."""

from __future__ import annotations

import os
from pathlib import Path

from rgalign.service.errors import ErrorCode, ServiceFault

IN_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
MAX_NAME_CHARS = 64


def find(root: Path | None, name: str) -> Path:
    """The directory ``name`` in ``root``; a link does not count as one.

    Raises:
        ServiceFault: ``invalid_request`` for what is no plain name, ``unknown_name`` where there is no such directory.
    """
    if not 0 < len(name) <= MAX_NAME_CHARS or not set(name) <= IN_NAME or name.startswith("."):
        required = f"1 to {MAX_NAME_CHARS} of letters, digits, '.', '_' and '-', not beginning with '.'"
        raise ServiceFault(ErrorCode.INVALID_REQUEST, field="name", required=required)
    if root is None:
        raise ServiceFault(ErrorCode.UNKNOWN_NAME, field="name")
    try:
        descriptor = os.open(root / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        raise ServiceFault(ErrorCode.UNKNOWN_NAME, field="name") from None
    os.close(descriptor)
    return root / name
