"""The peer: FastAPI, transformers and FAISS, as a competent user puts them together for the same ranker.

    python -m rgalign.bench.peers.fastapi_service BUNDLE --model smollm2 --threads 2

POST /v1/recommend with the body of ours, and its answer's main part. An asyncio queue gives one thread whatever waits,
at most 16 requests; the model reads them as one batch of whole prompts in float32, without its LM head, padded behind
the last token, so that a causal model needs no mask; FAISS searches the fused vectors. Weights, verbalised features and
token ids are the bundle's, so that its answers are ours, but for 8-bit arithmetic.

What ours has and this has not: cached prefix, 8-bit engine, deadlines, degraded answers, refusal of malformed JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import pyarrow as pa
import torch
import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from torch.nn import functional

from rgalign.bench.loadgen_server import NICENESS
from rgalign.bundle import read_bundle
from rgalign.errors import DataError, ProvenanceError
from rgalign.models.layers import unit
from rgalign.reasoner.engine.artifact import read_manifest as read_engine_manifest
from rgalign.reasoner.pretrained import load_model, model_fingerprint
from rgalign.recommender.context import ContextReader

MAX_BATCH = 16
MAX_QUEUE = 256


class Asked(BaseModel):
    context: dict[str, Any]
    k: int = 3
    deadline_ms: float | None = None  # ours has it; here nobody keeps it


class Ranked(BaseModel):
    id: str
    title: str
    score: float


class Answer(BaseModel):
    intents: list[Ranked]
    degraded: None = None


class Model:
    """Contexts to ranked intents, a batch at a time.

    Args:
        bundle: whose towers, index, prompts and features these are.
        model: of the reasoner whose engine the bundle has.

    Raises:
        ProvenanceError: it is another model.
    """

    def __init__(self, bundle: Path, model: str) -> None:
        self._bundle = read_bundle(bundle)
        if self._bundle.prompts is None or self._bundle.projection is None:
            raise ProvenanceError(where=str(bundle), required="a bundle with a reasoner", received="one without")
        wanted, found = read_engine_manifest(self._bundle.engine).model, model_fingerprint(model)
        if wanted != found:
            raise ProvenanceError(where=f"model {model}", required=f"the engine's ({wanted[:12]})", received=found[:12])
        self._prompts, self._projection = self._bundle.prompts, self._bundle.projection
        self._decoder = load_model(model).get_decoder()
        self._contexts = ContextReader(self._bundle.schema)
        self._index = faiss.IndexFlatIP(self._bundle.index.dim)
        self._index.add(self._bundle.index.decoded.numpy())

    def read(self, context: dict[str, Any]) -> dict[str, Any]:
        """A context as the features want it; raises DataError."""
        return self._contexts.read(context)

    @torch.inference_mode()
    def recommend(self, contexts: Sequence[dict[str, Any]], k: int) -> list[list[Ranked]]:
        """The k best of each of B contexts, as ``read`` gives them."""
        prompts = [self._prompts.full_ids(ids) for ids in self._prompts.encode_many(contexts)]
        lengths = torch.tensor([len(ids) for ids in prompts])
        padded = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long)
        for row, ids in enumerate(prompts):
            padded[row, : len(ids)] = torch.from_numpy(ids)
        hidden = self._decoder(input_ids=padded, use_cache=False).last_hidden_state
        latents = hidden[torch.arange(len(prompts)), lengths - 1]
        query = unit(functional.linear(latents, self._projection.weight, self._projection.bias))
        table = pa.concat_tables(self._contexts.table(context) for context in contexts)
        user = unit(self._bundle.user_tower(self._bundle.encoder.encode(table), self._bundle.intent_table))
        omega, index = self._bundle.manifest.omega, self._bundle.index
        fused = omega * user + (1 - omega) * query
        scores, rows = self._index.search(fused.numpy(), min(k, self._index.ntotal))
        return [
            [Ranked(id=index.ids[row], title=index.titles[row], score=score) for row, score in zip(*each, strict=True)]
            for each in zip(rows.tolist(), scores.tolist(), strict=True)
        ]


class Waiting(NamedTuple):
    context: dict[str, Any]
    k: int
    answer: asyncio.Future[list[Ranked]]


class DynamicBatches:
    """A queue, and a loop that gives the model whatever waits."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._queue: asyncio.Queue[Waiting] = asyncio.Queue(MAX_QUEUE)
        self._thread = ThreadPoolExecutor(1)

    async def ask(self, context: dict[str, Any], k: int) -> list[Ranked]:
        answer: asyncio.Future[list[Ranked]] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(Waiting(context, k, answer))
        return await answer

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            while len(batch) < MAX_BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            k = max(each.k for each in batch)
            try:
                contexts = [each.context for each in batch]
                ranked = await loop.run_in_executor(self._thread, self._model.recommend, contexts, k)
            except Exception as error:
                for each in batch:
                    if not each.answer.done():
                        each.answer.set_exception(error)
                continue
            for each, intents in zip(batch, ranked, strict=True):
                if not each.answer.done():
                    each.answer.set_result(intents[: each.k])


def application(model: Model) -> FastAPI:
    batches = DynamicBatches(model)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(batches.run())
        yield
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    app = FastAPI(lifespan=lifespan)

    @app.post("/v1/recommend")
    async def recommend(asked: Asked) -> Answer:
        try:
            context = model.read(asked.context)
        except DataError as error:
            raise HTTPException(422, str(error)) from None
        try:
            return Answer(intents=await batches.ask(context, asked.k))
        except asyncio.QueueFull:
            raise HTTPException(503, "overloaded") from None

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    os.nice(NICENESS)  # as ours is, for the load generator's sake
    torch.set_num_threads(arguments.threads)
    model = Model(arguments.bundle, arguments.model)
    model.recommend([model.read({})], 1)
    listener = socket.create_server(("127.0.0.1", 0), backlog=2_048)
    host, port = listener.getsockname()
    print(json.dumps({"host": host, "port": port}), flush=True)
    server = uvicorn.Server(uvicorn.Config(application(model), log_level="warning", timeout_keep_alive=120))
    asyncio.run(server.serve([listener]))


if __name__ == "__main__":
    main()
