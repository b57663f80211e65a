"""A chat-completions server on loopback, sessions with histories and a personal feature, and a tiny language model."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rgalign.data.dataset import Dataset, DatasetWriter
from rgalign.intents import IntentCatalog
from rgalign.schema import CategoricalFeature, CategoricalMember, FeatureSchema, GroupFeature, NumericalMember
from rgalign.training.teachers.teacher import Context, session_contexts

TITLES = ("Where Is My Order?", "Refund Status", "Change of Address", "Missing Parcel", "Wallet Top-Up", "Log In")
PAGES = ("orders", "wallet", "home")


@dataclass(frozen=True)
class Reply:
    """What the server sends; ``delay_s`` before it does."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0


def spoken(text: str | None, prompt_tokens: int = 30, completion_tokens: int = 12, delay_s: float = 0.0) -> Reply:
    values = {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens},
    }
    return Reply(body=json.dumps(values).encode(), delay_s=delay_s)


def refused(status: int, message: str, *, code: str | None = None, headers: dict[str, str] | None = None) -> Reply:
    return Reply(status, json.dumps({"error": {"message": message, "code": code}}).encode(), headers or {})


@dataclass
class ChatServer:
    """``requests`` are (headers, body) as they came, ``times`` when; ``most_at_once`` of them were in work."""

    url: str
    requests: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    most_at_once: int = 0


@contextmanager
def chat_server(answer: Callable[[int, dict[str, Any]], Reply]) -> Iterator[ChatServer]:
    """Args: answer: (number of the request, its body) -> reply."""
    lock = threading.Lock()
    at_once = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            nonlocal at_once
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                number = len(state.requests)
                state.requests.append((dict(self.headers.items()), {"path": self.path, **body}))
                state.times.append(time.monotonic())
                at_once += 1
                state.most_at_once = max(state.most_at_once, at_once)
            reply = answer(number, body)
            time.sleep(reply.delay_s)
            with lock:
                at_once -= 1
            try:
                self.send_response(reply.status)
                for name, value in {**reply.headers, "content-length": str(len(reply.body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client did not wait: what the timeout test is about

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state = ChatServer(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="session")
def serve() -> Callable[[Callable[[int, dict[str, Any]], Any]], AbstractContextManager[Any]]:
    return chat_server


@pytest.fixture(scope="session")
def replies() -> SimpleNamespace:
    return SimpleNamespace(Reply=Reply, spoken=spoken, refused=refused)


def service_schema() -> FeatureSchema:
    return FeatureSchema(
        name="service",
        features=(
            CategoricalFeature(name="page", dimension="context", vocabulary="pages", verbalize="Page: {value}"),
            CategoricalFeature(
                name="phone", dimension="profile", vocabulary="phones", verbalize="Phone: {value}", pii=True
            ),
            GroupFeature(
                name="contacts",
                dimension="behaviour",
                members=(
                    CategoricalMember(name="contact_intent", vocabulary="intents"),
                    NumericalMember(name="contact_age", unit="hours"),
                ),
                age="contact_age",
                max_length=4,
                item="'{contact_intent}' {contact_age} ago",
                verbalize="Earlier Contacts: ({items})",
            ),
        ),
        vocabularies={"pages": {page: page.title() for page in PAGES}, "phones": {"0171": "Blue Bell"}},
    )


def sessions(count: int, seed: int, start: datetime) -> list[dict[str, Any]]:
    """The click follows from the page in most sessions, and from the last contact in the others."""
    rng = np.random.default_rng(seed)
    ids = [f"i{number}" for number in range(len(TITLES))]
    rows = []
    for number in range(count):
        page = int(rng.integers(len(PAGES)))
        contacts = rng.integers(len(ids), size=rng.integers(3)).tolist()
        row = contacts[0] if contacts and rng.random() < 0.4 else 2 * page if rng.random() < 0.8 else 5
        rows.append(
            {
                "session_id": f"s{seed}-{number}",
                "user_id": f"u{number % 20}",
                "ts": start + timedelta(minutes=number // 2),  # two at a time
                "region": "north" if number % 3 else "south",
                "page": PAGES[page],
                "phone": "0171" if number % 5 == 0 else None,
                "contact_intent": [ids[each] for each in contacts],
                "contact_age": [float(5 * place + 1) for place in range(len(contacts))],
                "candidates": [],
                "clicked": [ids[row]],
            }
        )
    return rows


TYPES = {
    "session_id": pa.string(),
    "user_id": pa.string(),
    "ts": pa.timestamp("us"),
    "region": pa.string(),
    "page": pa.string(),
    "phone": pa.string(),
    "contact_intent": pa.list_(pa.string()),
    "contact_age": pa.list_(pa.float64()),
    "candidates": pa.list_(pa.string()),
    "clicked": pa.list_(pa.string()),
}


def write_service(path: Path, train: list[dict[str, Any]], valid: list[dict[str, Any]]) -> Dataset:
    ids = tuple(f"i{number}" for number in range(len(TITLES)))
    catalog = IntentCatalog(ids, TITLES, ("",) * len(TITLES))
    with DatasetWriter(path, service_schema(), catalog, rows_per_shard=250) as writer:
        for split, rows in (("train", train), ("valid", valid)):
            writer.write(split, pa.Table.from_pylist(rows, schema=pa.schema(list(TYPES.items()))))
    return Dataset.open(path)


@pytest.fixture(scope="session")
def make_service() -> Callable[..., Dataset]:
    """(path, train rows, valid rows) -> dataset."""
    return write_service


@pytest.fixture(scope="session")
def make_sessions() -> Callable[..., list[dict[str, Any]]]:
    return sessions


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """600 training and 40 validation sessions."""
    path = tmp_path_factory.mktemp("service") / "data"
    return write_service(path, sessions(600, 1, datetime(2026, 1, 1)), sessions(40, 2, datetime(2026, 2, 1)))


@pytest.fixture(scope="session")
def contexts(service: Dataset) -> list[Context]:
    """Six distinct prompts."""
    found: dict[str, Context] = {}
    for context in session_contexts(service, "train", np.arange(60)):
        found.setdefault(str([context.session[name] for name in service.schema.columns]), context)
    return list(found.values())[:6]


MakeTokenizer = Callable[..., PreTrainedTokenizerFast]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_model(path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A random two-layer Llama."""
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        initializer_range=0.3,  # so that what comes first decides what is written
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: MakeTokenizer) -> Path:
    tokenizer = byte_tokenizer("<|im_start|>", "<|im_end|>", eos="<|im_end|>", pad="<|im_start|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model", tokenizer)


@pytest.fixture(scope="session")
def chatless_model(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: MakeTokenizer) -> Path:
    tokenizer = byte_tokenizer("<pad>", "</s>", eos="</s>", pad="<pad>")
    return write_tiny_model(tmp_path_factory.mktemp("chatless") / "model", tokenizer)
