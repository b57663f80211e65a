"""The service of a bundle whose reasoner takes its time: python slowed_service.py BUNDLE SECONDS_A_CALL"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import rgalign
from rgalign.bundle import Bundle
from rgalign.recommender import RecommenderConfig, engine_of
from rgalign.service.logs import start_logging
from rgalign.service.server import Listening, serve
from rgalign.service.settings import ServiceSettings


class Slowed:
    def __init__(self, inner: Any, seconds: float) -> None:
        self._inner, self._seconds = inner, seconds

    def embed(self, token_ids: Sequence[Any], *, prefix_ids: Sequence[int]) -> Any:
        time.sleep(self._seconds)
        return self._inner.embed(token_ids, prefix_ids=prefix_ids)


def make_reasoner(bundle: Bundle, config: RecommenderConfig) -> Slowed:
    return Slowed(engine_of(bundle, config), float(sys.argv[2]))


def tell(listening: Listening) -> None:
    host, port = listening.address
    print(json.dumps({"host": host, "port": port}), flush=True)


if __name__ == "__main__":
    start_logging(level=30)
    config = RecommenderConfig(deadline_ms=30_000.0, max_queue=1_000)
    sys.exit(serve(rgalign.load(sys.argv[1], config, make_reasoner=make_reasoner), ServiceSettings(port=0), None, tell))
