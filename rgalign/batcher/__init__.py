"""Batches requests for a model, each with a deadline and exactly one answer: the face of the C++ batcher.

    with Batcher(config, model) as batcher:
        future = batcher.submit(token_ids, deadline_ms=200)  # concurrent.futures.Future
        row = future.result()  # the model's row, or a typed error that says why there is none
        row = await batcher.asubmit(token_ids)  # the same from a coroutine

An idle model takes what is there at once; while it is busy the queue grows to the next batch's budgets. A deadline is
kept while the model hangs, for another thread watches it. csrc/batcher/core.h has the whole promise, docs/batcher.md
the reasons.
"""

from rgalign.batcher.answers import BatcherClosed as BatcherClosed
from rgalign.batcher.answers import ClientCapReached as ClientCapReached
from rgalign.batcher.answers import DeadlineExceeded as DeadlineExceeded
from rgalign.batcher.answers import ForkedError as ForkedError
from rgalign.batcher.answers import ModelFault as ModelFault
from rgalign.batcher.answers import NotAnswered as NotAnswered
from rgalign.batcher.answers import Outcome as Outcome
from rgalign.batcher.answers import QueueFull as QueueFull
from rgalign.batcher.answers import WrongLength as WrongLength
from rgalign.batcher.batcher import Batcher as Batcher
from rgalign.batcher.batcher import BatcherCounters as BatcherCounters
from rgalign.batcher.config import BatcherConfig as BatcherConfig
from rgalign.batcher.model_call import Batch as Batch
from rgalign.batcher.model_call import BatchBuffers as BatchBuffers
