"""Against a server that is not ours: `transformers serve` with a tiny random model, where it is installed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers.utils.import_utils import is_serve_available

from rgalign.data.dataset import Dataset
from rgalign.training.teachers.openai_config import OpenAIConfig
from rgalign.training.teachers.openai_teacher import OpenAITeacher
from rgalign.training.teachers.teacher import Context

START_S = 90.0

pytestmark = [
    pytest.mark.slow,  # the server imports transformers for itself
    pytest.mark.skipif(not is_serve_available(), reason="it needs `pip install transformers[serving]`"),
]


@pytest.fixture(scope="module")
def address(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the tiny model, up and answering."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", str(tiny_model)]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with open(log, "wb") as output:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
            env=offline,
            stdout=output,
            stderr=output,
        )
        try:
            deadline = time.monotonic() + START_S
            while True:
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait(10)


def test_transformers_serve_answers(address: str, tiny_model: Path, service: Dataset, contexts: list[Context]) -> None:
    config = OpenAIConfig(
        kind="openai",
        name="served",
        base_url=address,
        model=str(tiny_model),
        api_key_env=None,
        max_tokens=6,
        temperature=None,  # the server's generation config decides
        concurrency=2,
        timeout_s=60.0,
    )
    answers = dict(OpenAITeacher(config, service.schema).generate(contexts[:2]))
    assert sorted(answers) == [0, 1]
    for answer in answers.values():
        assert answer.text or answer.failure.startswith("empty answer"), answer.failure
        assert answer.prompt_tokens > 500  # bytes
        assert 0 < answer.completion_tokens <= 6
