"""The Python that runs the peer service: this one if it has all of it, else that of an environment made for it.

The new environment has the peer's packages in the versions of constraints.txt; a ``.pth`` file adds this one's (torch,
transformers, rgalign) behind them. Nothing of the project's own environment is changed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from rgalign.bench.rows import ROOT

PACKAGES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "faiss": "faiss-cpu"}  # module -> distribution
BEHIND = ("torch", "transformers")
READY = "ready"  # an empty file, written last


def peer_python(directory: Path = ROOT / "build" / "bench" / "peer-service") -> Path:
    """The interpreter; the environment is made (half a minute) if it is needed and not there whole."""
    missing = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if not missing:
        return Path(sys.executable)
    python = directory / "bin" / "python"
    if not (directory / READY).is_file():
        venv.create(directory, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt")]
        subprocess.run([*install, *PACKAGES.values()], check=True)  # before the link: pip would take ours for installed
        name = f"python{sys.version_info.major}.{sys.version_info.minor}"
        link = directory / "lib" / name / "site-packages" / "behind.pth"
        link.write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
        (directory / READY).touch()
    return python


def peer_versions(python: Path) -> dict[str, str]:
    """Of what the peer is made of, in its own environment."""
    names = (*PACKAGES.values(), *BEHIND)
    if python == Path(sys.executable):
        return {name: importlib.metadata.version(name) for name in names}
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    found = subprocess.run([str(python), "-c", code, *names], capture_output=True, text=True, check=True).stdout
    return dict(zip(names, found.split(), strict=True))
