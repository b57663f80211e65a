"""Instructions of the C++ hot paths, counted by callgrind and compared with the committed numbers.

    python -m rgalign.bench.instruction_counts             exits with an error where one has grown
    python -m rgalign.bench.instruction_counts --write     commits to the new numbers

Counts do not depend on the machine's load, so a test may insist on them where it may not insist on a time. They depend
on the compiler: the committed ones are of one major version of g++, and are compared loosely with another's.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from rgalign.bench.rows import ROOT
from rgalign.errors import RgalignError

COMMITTED = ROOT / "bench" / "instruction_counts.json"
TOLERANCE, OTHER_COMPILER = 0.05, 0.5  # growth that is let pass
COLLECTED = re.compile(r"Collected\s*:\s*(\d+)")


class CountError(RgalignError):
    """The counts could not be made."""


def why_not() -> str | None:
    """What is missing here; None: nothing."""
    for program in ("valgrind", "g++"):
        if shutil.which(program) is None:
            return f"needs {program}"
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
    return None if " avx2 " in flags and " fma " in flags else "needs a processor with AVX2"


def build(directory: Path) -> Path:
    """The driver (tests/csrc/instruction_counts.cpp), built as the extension is."""
    options = [
        "-DCMAKE_BUILD_TYPE=Release",
        "-DRGALIGN_EXTENSION=OFF",
        "-DRGALIGN_TESTS=ON",
        "-DCMAKE_CXX_COMPILER=g++",
    ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # cmake and ninja are packages
    _run(["cmake", "-S", str(ROOT), "-B", str(directory), "-G", "Ninja", *options], path)
    _run(["cmake", "--build", str(directory), "--target", "instruction_counts"], path)
    return directory / "instruction_counts"


def compiler() -> str:
    """``g++ 12``."""
    return f"g++ {_run(['g++', '-dumpversion']).split('.')[0].strip()}"


def count(driver: Path, name: str, repeats: int = 1) -> float:
    """Instructions a unit of work."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"]
    done = subprocess.run(
        [*command, "--toggle-collect=counted", str(driver), name, str(repeats)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LD_BIND_NOW": "1"},  # or the first call of a library's function is counted with its lookup
    )
    collected = COLLECTED.search(done.stderr)
    if done.returncode or collected is None or not int(collected[1]):
        raise CountError(where=f"count of {name}", required="callgrind's count", received=done.stderr[-300:])
    return int(collected[1]) / float(done.stdout)


def count_all(driver: Path) -> dict[str, float]:
    return {name: round(count(driver, name), 3) for name in _run([str(driver)]).splitlines()}


def grown(counts: Mapping[str, float], committed: Mapping[str, float], tolerance: float) -> list[str]:
    """What has grown beyond the tolerance, is new or is gone, a line each."""
    found = [f"{name}: not in the committed numbers" for name in counts.keys() - committed.keys()]
    found += [f"{name}: committed, but not counted" for name in committed.keys() - counts.keys()]
    for name in counts.keys() & committed.keys():
        if counts[name] > committed[name] * (1 + tolerance):
            change = counts[name] / committed[name] - 1
            found.append(f"{name}: {counts[name]:g} instructions, {change:+.1%} over {committed[name]:g}")
    return sorted(found)


def tolerance_of(committed_compiler: str) -> float:
    return TOLERANCE if committed_compiler == compiler() else OTHER_COMPILER


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help=f"the counts to {COMMITTED.relative_to(ROOT)}")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "instruction_counts", help="folder")
    arguments = parser.parse_args()
    if (missing := why_not()) is not None:
        raise SystemExit(missing)
    counts = count_all(build(arguments.build))
    if arguments.write:
        COMMITTED.write_text(json.dumps({"compiler": compiler(), "counts": counts}, indent=1) + "\n", encoding="utf-8")
    committed = json.loads(COMMITTED.read_text(encoding="utf-8"))
    for name, instructions in counts.items():
        print(f"{instructions:12.3f}  {committed['counts'].get(name, float('nan')):12.3f}  {name}")
    if found := grown(counts, committed["counts"], tolerance_of(committed["compiler"])):
        raise SystemExit("\n".join(found))


def _run(command: list[str], path: str | None = None) -> str:
    environment = None if path is None else {**os.environ, "PATH": path}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        shown = (done.stdout + done.stderr)[-1_000:]
        raise CountError(where=" ".join(command), required="exit code 0", received=shown)
    return done.stdout


if __name__ == "__main__":
    main()
