"""A service of its own for a measurement: started, loaded, ended by SIGTERM.

    python -m rgalign.bench.loadgen_server BUNDLE [--set threads=2]      ours, as `rgalign serve` is

Prints its address as one JSON line. It runs at a lower priority than the load generator: where both share the cores, it
is the generator's clock that must not suffer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rgalign.errors import ConfigError

NICENESS = 2  # added to the generator's
END_S = 15.0


@dataclass(frozen=True)
class Address:
    host: str
    port: int


def our_command(bundle: Path, settings: Sequence[str] = ()) -> list[str]:
    sets = [part for setting in settings for part in ("--set", setting)]
    return [sys.executable, "-m", "rgalign.bench.loadgen_server", str(bundle), *sets]


@contextlib.contextmanager
def started(command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Iterator[Address]:
    """The address that the command prints once it serves; its errors go to ``log``.

    Raises:
        ConfigError: it ended before it served; with the end of its log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            list(command),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **(environment or {})},
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                process.wait()
                last = log.read_text(encoding="utf-8").strip().splitlines()[-1:] or ["nothing in its log"]
                required = f"a service of {' '.join(command[1:4])}"
                raise ConfigError(where=str(log), required=required, received=f"code {process.returncode}: {last[0]}")
            yield Address(**json.loads(line))
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


def main() -> None:
    import logging

    import rgalign
    from rgalign.config import load_config
    from rgalign.recommender import RecommenderConfig
    from rgalign.service.logs import start_logging
    from rgalign.service.server import Listening, serve
    from rgalign.service.settings import ServiceSettings

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--set", action="append", default=[], help="key=value of RecommenderConfig")
    arguments = parser.parse_args()
    os.nice(NICENESS)
    start_logging(level=logging.WARNING)

    def tell(listening: Listening) -> None:
        host, port = listening.address
        print(json.dumps({"host": host, "port": port}), flush=True)

    recommender = rgalign.load(arguments.bundle, load_config(RecommenderConfig, None, arguments.set))
    sys.exit(serve(recommender, ServiceSettings(port=0), None, tell))


if __name__ == "__main__":
    main()
