"""Logs without what the user sent: ids, sizes, times and codes; of an exception its type and place, never its text."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from typing import IO, Any

LOG = logging.getLogger("rgalign.service")
MAX_FRAMES = 5


class JsonLines(logging.Formatter):
    """One JSON object a line. ``record.fields`` go in as they are."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line.update(fault_fields(record.exc_info[1]))
        return json.dumps(line, ensure_ascii=False, default=str)


def fault_fields(error: BaseException) -> dict[str, Any]:
    """The type of ``error`` and where it was raised. Its text may quote a request, so it stays out."""
    frames = traceback.extract_tb(error.__traceback__)[-MAX_FRAMES:]
    return {
        "error": type(error).__name__,
        "frames": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }


def log_event(event: str, /, level: int = logging.INFO, **fields: Any) -> None:
    if LOG.isEnabledFor(level):
        LOG.log(level, event, extra={"fields": fields})


def start_logging(stream: IO[str] | None = None, level: int = logging.INFO) -> None:
    """All of the process's logs to ``stream`` (standard error) in this form."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    LOG.setLevel(level)
