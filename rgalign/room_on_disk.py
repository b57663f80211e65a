"""A full disk as a typed error: where, and that the same command goes on once there is room.

Python, numpy, safetensors and torch each say it in their own way; of the last three, only the text tells.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rgalign.errors import DataError, RgalignError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TOLD = re.compile(
    rf"\(os error ({'|'.join(map(str, FULL))})\)"  # safetensors
    r"|^\d+ requested and \d+ written$"  # numpy
    r"|inline_container.*(unexpected pos|write failed)"  # torch.save
)


@contextmanager
def room_on_disk(where: Path) -> Iterator[None]:
    """Raises DataError in place of what a writer raises on a full disk or quota; every other error passes."""
    try:
        yield
    except RgalignError:  # an inner guard's, which says where
        raise
    except Exception as error:
        if not (isinstance(error, OSError) and error.errno in FULL) and not _TOLD.search(str(error)):
            raise
        required = "room to write (what was finished is kept; free some and run the same command again)"
        raise DataError(where=str(where), required=required, received=str(error)) from error
