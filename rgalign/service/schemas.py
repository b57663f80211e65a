"""The bodies of requests and answers: what OpenAPI documents, the server checks and the client returns."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_K = 64  # of the scorer
Scalar = str | int | float | bool | None
Context = Annotated[
    dict[str, Any],
    Field(
        description="Feature name -> value, as a row of the dataset: a string, a number, a boolean, null, or a list of "
        "these for sequences and groups, newest first. A feature left out is missing.",
        examples=[{"region": "SG", "entry_point": "order_page", "recent_intents": ["track_order"], "hours_ago": [3.5]}],
    ),
]
ClientName = Annotated[str, StringConstraints(max_length=64)]


class Asked(BaseModel):
    """Base of requests: exact types, no unknown field."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Told(BaseModel):
    """Base of answers."""

    model_config = ConfigDict(frozen=True)


class RecommendRequest(Asked):
    context: Context
    k: int = Field(default=3, ge=1, le=MAX_K, description="How many intents; fewer if the catalogue has fewer.")
    deadline_ms: float | None = Field(
        default=None, gt=0, description="From arrival; null: the server's own. The answer comes by then, if need be "
        "without the reasoner (`degraded`)."
    )  # fmt: skip
    client: ClientName = Field(default="", description="Who asks, for the limit per client. Never logged.")
    priority: Literal["interactive", "bulk"] = "interactive"


class RecommendManyRequest(Asked):
    contexts: list[Context] = Field(min_length=1)
    k: int = Field(default=3, ge=1, le=MAX_K)
    deadline_ms: float | None = Field(default=None, gt=0)
    client: ClientName = ""
    priority: Literal["interactive", "bulk"] = "bulk"


class RankedIntent(Told):
    id: str
    title: str
    score: float = Field(description="user_part + query_part, up to rounding; ranked by it, ties by id")
    user_part: float
    query_part: float
    probability: float


class Timings(Told):
    """Milliseconds."""

    tokenise_ms: float
    queue_ms: float
    reason_ms: float
    rank_ms: float
    total_ms: float


class Recommendation(Told):
    intents: list[RankedIntent]
    show: bool = Field(description="False: nothing is likely enough to be worth showing.")
    degraded: str | None = Field(description="Why the query part is missing (ω = 1): late, failed, ...; or null.")
    bundle: str
    generation: int = Field(description="Of the intent index that answered.")
    timings: Timings


class RecommendResponse(Recommendation):
    request_id: str


class Error(Told):
    code: str = Field(description="One of a closed set: see docs/http.md.")
    message: str
    field: str | None = Field(default=None, description="The field or feature at fault.")
    required: str | None = None
    retry_after_ms: float | None = None
    request_id: str


class ErrorResponse(Told):
    error: Error


class Item(Told):
    """One context's answer: exactly one of the two."""

    recommendation: Recommendation | None = None
    error: Error | None = None


class RecommendManyResponse(Told):
    items: list[Item] = Field(description="In the order of the contexts.")
    request_id: str


class Intent(Told):
    id: str
    title: str
    description: str


class IntentsResponse(Told):
    intents: list[Intent]
    next: str | None = Field(description="Give it as `after` for the following page; null: this is the last.")
    total: int


class Live(Told):
    live: Literal[True] = True


class Ready(Told):
    ready: bool
    draining: bool


class Degraded(Told):
    degraded: bool
    breaker: Literal["closed", "open", "half_open"]


class SwapRequest(Asked):
    name: ClientName = Field(description="Of a directory in the bundle root.")


class DrainRequest(Asked):
    timeout_s: float = Field(default=4.0, ge=0, le=600)


class SwapIndexResponse(Told):
    generation: int


class SwapBundleResponse(Told):
    bundle: str


class DrainResponse(Told):
    drained: bool
    in_flight: int


class StatusResponse(Told):
    ready: bool
    degraded: bool
    breaker: str
    bundle: str
    generation: int
    draining: bool
    in_flight: int
