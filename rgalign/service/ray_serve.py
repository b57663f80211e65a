"""The same Recommender and the same routes as a Ray Serve deployment: replicas, autoscaling, rolling bundle updates.

    serve run rgalign.service.ray_serve:application bundle=/bundles/city max_replicas=4 gpus=1

Ray's proxies take the place of our listener, so its limits on connections and its admin listener are not there: put a
gateway in front. Another bundle: deploy again, and Ray replaces replica by replica; or change ``user_config`` alone in
a configuration file, and each replica swaps in place.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from fastapi import FastAPI
from pydantic import Field, model_validator
from ray import serve
from ray.serve.config import AutoscalingConfig
from starlette.types import ASGIApp, Receive, Scope, Send

import rgalign
from rgalign.config import Config
from rgalign.recommender import Recommender, RecommenderConfig
from rgalign.service.app import Service, public_app
from rgalign.service.settings import ServiceSettings

NAME = "rgalign"


class RayServeSettings(Config):
    """Of a deployment.

    Args:
        bundle: directory that every node sees.
        min_replicas, max_replicas, target_ongoing: as many as keep requests on their way, queued ones with them, at
            ``target_ongoing`` a replica.
        max_ongoing: that Ray gives a replica; it holds back what is more.
        cpus, gpus: of a replica.
        recommender, service: as of ``rgalign serve``; the listener's own settings have no effect.
    """

    bundle: Path
    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=1, ge=1)
    target_ongoing: float = Field(default=8.0, gt=0)
    max_ongoing: int = Field(default=256, ge=1)
    cpus: float = Field(default=1.0, gt=0)
    gpus: float = Field(default=0.0, ge=0)
    health_check_s: float = Field(default=5.0, gt=0)
    recommender: RecommenderConfig = RecommenderConfig()
    service: ServiceSettings = ServiceSettings()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas is less than min_replicas")
        return self


class Routes:
    """None until the bundle is loaded; Ray sends no requests before."""

    def __init__(self) -> None:
        self.app: ASGIApp = FastAPI()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


@serve.ingress()
class Replica:
    """One replica: a Recommender, and the routes of app.py on it. Loaded by the first ``reconfigure``."""

    def __init__(self, recommender: Mapping[str, Any], service: Mapping[str, Any]) -> None:
        self._config = RecommenderConfig.model_validate(recommender)
        self._settings = ServiceSettings.model_validate(service)
        self._path: Path | None = None
        self._recommender: Recommender | None = None
        self._routes = Routes()

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Loads the bundle, later swaps it under load; a bad one is refused and nothing changes."""
        path = Path(user_config["bundle"])
        if self._recommender is None:
            self._recommender = await asyncio.to_thread(rgalign.load, path, self._config)
            self._routes.app = public_app(Service.of(self._recommender, self._settings))
        elif path != self._path:
            await asyncio.to_thread(self._recommender.swap_bundle, path)
        self._path = path

    async def check_health(self) -> None:
        """Ray replaces a replica that raises here several times in a row."""
        if self._recommender is not None and not self._recommender.health().ready:
            raise RuntimeError("not ready")

    async def status(self) -> dict[str, Any]:
        """Which bundle it serves, and in which process."""
        assert self._recommender is not None
        health = self._recommender.health()
        return {"pid": os.getpid(), "bundle": health.bundle, "ready": health.ready, "degraded": health.degraded}

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._routes

    def __del__(self) -> None:
        if self._recommender is not None:
            self._recommender.close()


def application(args: RayServeSettings) -> serve.Application:
    """The application of one bundle; ``serve run`` and Ray's configuration files call it by name."""
    values = args.model_dump(mode="json")
    deployed = serve.deployment(
        name=NAME,
        ray_actor_options={"num_cpus": args.cpus, "num_gpus": args.gpus},
        max_ongoing_requests=args.max_ongoing,
        user_config={"bundle": values["bundle"]},  # not an argument: those are of the replica's version
        autoscaling_config=AutoscalingConfig(
            min_replicas=args.min_replicas,
            max_replicas=args.max_replicas,
            target_ongoing_requests=args.target_ongoing,
        ),
        health_check_period_s=args.health_check_s,
        graceful_shutdown_timeout_s=args.service.drain_s + 2,
    )(Replica)
    bound: serve.Application = deployed.bind(values["recommender"], values["service"])
    return bound
