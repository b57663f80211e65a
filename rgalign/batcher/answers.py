"""How a request can end, and the error for every end but a row."""

from __future__ import annotations

from enum import IntEnum

from rgalign.errors import RgalignError


class Outcome(IntEnum):
    """How a request ended; each ends in exactly one. The order is that of ``Outcome`` in csrc/batcher/core.h."""

    ROW = 0
    DEADLINE_QUEUED = 1
    DEADLINE_RUNNING = 2
    CANCELLED = 3
    QUEUE_FULL = 4
    CLIENT_CAP = 5
    CLOSED = 6
    WRONG_LENGTH = 7
    MODEL_RAISED = 8
    MODEL_SHAPE = 9
    MODEL_NOT_FINITE = 10


class NotAnswered(RgalignError, RuntimeError):
    """The request has no row. ``outcome`` says why."""

    outcome: Outcome


class DeadlineExceeded(NotAnswered, TimeoutError):
    """In the queue (DEADLINE_QUEUED), or in a model that is too slow or hangs (DEADLINE_RUNNING): see ``outcome``."""


class QueueFull(NotAnswered):
    """Overload. ``retry_after_ms`` is the time that serving the present queue takes."""

    retry_after_ms: float = 0.0


class ClientCapReached(NotAnswered):
    """The client has as many unfinished requests as one may have."""


class BatcherClosed(NotAnswered):
    """Submitted after ``close``, or not served before its drain ended."""


class WrongLength(NotAnswered):
    """No token, or more than a batch can hold for one request."""


class ModelFault(NotAnswered):
    """The model raised (``__cause__`` is what), gave the wrong shape, or NaN or infinity in this row."""


class ForkedError(RgalignError, RuntimeError):
    """Used in a forked child, where the batcher's threads do not exist."""


REASONS: dict[Outcome, tuple[type[NotAnswered], str, str]] = {
    Outcome.DEADLINE_QUEUED: (DeadlineExceeded, "an answer by the deadline", "the deadline came in the queue"),
    Outcome.DEADLINE_RUNNING: (DeadlineExceeded, "an answer by the deadline", "the deadline came in the model"),
    Outcome.QUEUE_FULL: (QueueFull, "room in the queue", "overload"),
    Outcome.CLIENT_CAP: (ClientCapReached, "at most max_per_client unfinished requests", "one more"),
    Outcome.CLOSED: (BatcherClosed, "an open batcher", "it closed"),
    Outcome.WRONG_LENGTH: (WrongLength, "1 to max_request_tokens tokens that a batch can hold", "another number"),
    Outcome.MODEL_RAISED: (ModelFault, "a row from the model", "it raised"),
    Outcome.MODEL_SHAPE: (ModelFault, "a row from the model", "another shape or dtype"),
    Outcome.MODEL_NOT_FINITE: (ModelFault, "finite numbers from the model", "NaN or infinity in this row"),
}


def not_answered(outcome: Outcome, cause: BaseException | None = None, *, retry_after_ms: float = 0.0) -> NotAnswered:
    """The error for any outcome but ROW and CANCELLED."""
    kind, required, received = REASONS[outcome]
    error = kind(where="batcher", required=required, received=received if cause is None else f"{received}: {cause!r}")
    error.outcome = outcome
    error.__cause__ = cause
    if isinstance(error, QueueFull):
        error.retry_after_ms = retry_after_ms
    return error


def forked() -> ForkedError:
    return ForkedError(where="batcher", required="the process that made it", received="a forked child: make one here")
