"""The short table at the end of a run: what the rows in a directory say, and nothing else.

python -m rgalign.bench.gpu.table DIR
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def rows_of(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def prefill(rows: list[Row]) -> Iterator[str]:
    """A line a way: milliseconds of every shape, and prompts a second of the fastest shape."""
    found = [row for row in rows if row["benchmark"] == "gpu prefill"]
    shapes = list(dict.fromkeys((row["batch"], row["tokens"], row["prefix_tokens"]) for row in found))
    if found:
        columns = "".join(f"{f'{batch}x{tokens}+{prefix}':>12}" for batch, tokens, prefix in shapes)
        yield f"{'prefill ms, prompts x new + cached tokens':44}{columns}{'best/s':>10}"
    for variant in dict.fromkeys(row["variant"] for row in found):
        own = {(row["batch"], row["tokens"], row["prefix_tokens"]): row for row in found if row["variant"] == variant}
        cells = (f"{own[shape]['call_us']['median'] / 1e3:12.3f}" if shape in own else f"{'-':>12}" for shape in shapes)
        yield f"{variant:44}{''.join(cells)}{max(row['prompts_per_s'] for row in own.values()):10.0f}"


def ceilings(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        if row["benchmark"] == "gpu ceilings":
            yield "ceilings, 10^12 a second: " + ", ".join(
                f"{name} {value / 1e12:.2f}" for name, value in row["per_second"].items()
            )


def end_to_end(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        rate, latency = "all at once" if row["rate"] is None else f"{row['rate']:g}/s", row["latency_ms"]
        yield (
            f"end to end {row['variant']:14} behind {row['prefix_tokens']:3}, {rate:>11}: "
            f"{row['requests_per_s']:8.1f}/s  p50 {latency['p50']:9.3f} ms  p99 {latency['p99']:9.3f} ms  "
            f"{row['answered']}/{row['requests']} answered"
        )


def kernels(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        yield (
            f"kernel {row['step']:20}{row['tokens']:6}  {row['variant']:24}{row['call_us']['median']:10.1f} us"
            f"{row['tera_per_s']:9.2f} T{row['what'][:2]}/s {row['share_of_ceiling']:7.1%}"
        )


def scoring(rows: list[Row]) -> Iterator[str]:
    """Of every shape the fastest of ours and of torch's."""
    fastest: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = (row["sessions"], row["intents"], row["index"], row["variant"].startswith("torch"))
        if key not in fastest or row["microseconds"]["median"] < fastest[key]["microseconds"]["median"]:
            fastest[key] = row
    for row in fastest.values():
        yield (
            f"scoring {row['sessions']:4} x {row['intents']:9} {row['index']:9} {row['variant']:34}"
            f"{row['microseconds']['median']:10.1f} us  {row['share_of_copy_bandwidth']:6.1%} of copy"
        )


def table(directory: Path) -> Iterator[str]:
    yield from kernels(rows_of(directory / "kernels.jsonl"))
    yield from scoring(rows_of(directory / "scoring.jsonl"))
    engine = rows_of(directory / "engine.jsonl")
    yield from ceilings(engine)
    yield from prefill(engine)
    yield from end_to_end(rows_of(directory / "end_to_end.jsonl"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    for line in table(parser.parse_args().directory):
        print(line)


if __name__ == "__main__":
    main()
