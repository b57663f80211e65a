"""How long an engine takes to load and how much memory it then has, measured in a process of its own.

    python -m rgalign.bench.engine_loading DIRECTORY [PREFIX_TOKENS]      one line of JSON

``growth_bytes`` is resident memory after loading and computing the prefix, minus before, with every module imported;
``needed_bytes`` is what it holds by definition: the file of tensors, and keys and values of the prefix in float32.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rgalign.reasoner.engine.artifact import TENSORS
from rgalign.reasoner.engine.reasoner import load_engine


@dataclass(frozen=True)
class Loading:
    """seconds: of loading alone, hashes checked; growth_bytes, needed_bytes: see above."""

    seconds: float
    growth_bytes: int
    needed_bytes: int

    @property
    def ratio(self) -> float:
        return self.growth_bytes / self.needed_bytes


def measure_loading(directory: Path, prefix_tokens: int) -> Loading:
    """Of a fresh process.

    Raises:
        subprocess.CalledProcessError: the engine could not be loaded.
    """
    command = [sys.executable, "-m", "rgalign.bench.engine_loading", str(directory), str(prefix_tokens)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Loading(**json.loads(done.stdout))


def load_here(directory: Path, prefix_tokens: int) -> Loading:
    before, began = resident_bytes(), time.perf_counter()
    reasoner = load_engine(directory)
    seconds = time.perf_counter() - began
    prefix = [token % reasoner.manifest.config.vocabulary for token in range(prefix_tokens)]
    reasoner.embed([np.zeros(1, np.int32)], prefix_ids=prefix)
    growth = resident_bytes() - before
    config = reasoner.manifest.config
    keys_values = 2 * 4 * prefix_tokens * config.num_layers * config.num_kv_heads * config.head_dim
    return Loading(seconds, growth, (directory / TENSORS).stat().st_size + keys_values)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    print(json.dumps(asdict(load_here(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 180))))
