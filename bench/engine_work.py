"""What a prefill costs and what the machine can give: floating-point operations, and the peaks they are divided by.

    products of a layer, a token:    2 H (Q + 2 KV) + 2 Q H + 6 H I      H hidden, Q and KV widths, I intermediate
    attention of a layer, a token:   4 Q (keys it sees)

A pruned last layer computes keys and values of every token and the rest of the last one alone. The embedding is looked
up, and there is no LM head. 8-bit products count like others: a multiplication and an addition are two operations.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rgalign.bench.rows import ROOT, in_turn
from rgalign.reasoner.engine.checkpoint import DecoderConfig

SGEMM_SIDE = 1_536
INTEGER_PRODUCTS = ("int8", "int8a12")  # 8-bit weights alone are multiplied in float32
PEAK_SOURCE = ROOT / "csrc" / "bench" / "engine_peak.cpp"  # of a checkout; a wheel has none


def prefill_gflop(
    config: DecoderConfig, lengths: Sequence[int], prefix: int, new_tokens: int, *, pruned: bool
) -> float:
    """10^9 operations of a batch's forward pass.

    Args:
        lengths: of each prompt, without its prefix.
        prefix: tokens before each, whose keys and values are there.
        new_tokens: how many are put through the products; less than the sum of lengths where beginnings are shared.
        pruned: whether the last layer is.
    """
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    rest = 2 * config.hidden * queries + 2 * queries * config.hidden + 6 * config.hidden * config.intermediate
    key_value = 4 * config.hidden * keys
    share = new_tokens / sum(lengths)
    attention = share * 4 * queries * sum(length * prefix + length * (length + 1) / 2 for length in lengths)
    layer = new_tokens * (rest + key_value) + attention
    if not pruned:
        return config.num_layers * layer / 1e9
    last_attention = 4 * queries * sum(length + prefix for length in lengths)
    return ((config.num_layers - 1) * layer + new_tokens * key_value + len(lengths) * rest + last_attention) / 1e9


@dataclass(frozen=True)
class Peaks:
    """10^9 operations a second with so many threads.

    sgemm: the best of large float32 products in torch (MKL).
    fp32_registers, int8_registers, int16_registers: the instructions that the engine multiplies and adds floats, 8-bit
        codes and wider codes with, on registers alone (``csrc/bench/engine_peak.cpp``); None where that does not run.
    int8_tiles: the same of 8-bit codes on AMX tiles, two of whose products make one of wider codes; None without AMX.
    """

    sgemm: float
    fp32_registers: float | None
    int8_registers: float | None
    int16_registers: float | None
    int8_tiles: float | None

    def of(self, dtype: str) -> float | None:
        """Registers' peak for products of a type; bf16's is not measured."""
        if "bf16" in dtype:
            return None
        if dtype not in INTEGER_PRODUCTS:
            return self.fp32_registers
        if self.int8_tiles is not None:
            return self.int8_tiles / 2 if dtype == "int8a12" else self.int8_tiles
        return self.int16_registers if dtype == "int8a12" else self.int8_registers

    def described(self) -> dict[str, Any]:
        return {name: None if value is None else round(value, 1) for name, value in asdict(self).items()}


def measure_peaks(threads: int, repeats: int = 7) -> Peaks:
    torch.set_num_threads(threads)
    square = torch.ones(SGEMM_SIDE, SGEMM_SIDE)
    seconds = in_turn({"sgemm": lambda: square @ square}, repeats)["sgemm"]
    registers = measure_registers(threads)
    return Peaks(2 * SGEMM_SIDE**3 / min(seconds) / 1e9, *map(registers.get, ("fp32", "int8", "int16", "tiles")))


def measure_registers(threads: int) -> dict[str, float]:
    """Best rates of the loops of ``engine_peak.cpp``; nothing where they cannot be compiled or run."""
    compiler = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    wide = torch.backends.cpu.get_cpu_capability().startswith(("AVX2", "AVX512"))
    if compiler is None or not wide or not PEAK_SOURCE.is_file():
        return {}
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "peak"
        flags = ["-std=c++17", "-O2", "-pthread"]
        subprocess.run([compiler, *flags, str(PEAK_SOURCE), "-o", str(program)], check=True)
        lines = subprocess.run([str(program), str(threads)], check=True, capture_output=True, text=True).stdout.split()
    return {name: float(rate) for name, rate in np.reshape(lines, (-1, 2)).tolist()}
