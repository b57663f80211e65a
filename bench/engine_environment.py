"""The environment of the engine's peers: their packages, and ours behind them. Nothing of the project's is changed.

python -m rgalign.bench.engine --peers build/engine-peers      makes it, once, and measures in it

OpenVINO, ONNX Runtime and NNCF ask for versions of their own of what training uses, so they live beside it: the new
environment's packages come first, and a ``.pth`` file adds this one's (torch, transformers, rgalign) after them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

from rgalign.bench.rows import ROOT
from rgalign.errors import ConfigError

PACKAGES = ("openvino", "onnxruntime", "onnx", "nncf")
CONSTRAINTS = ROOT / "constraints.txt"
READY = "ready"  # an empty file, written last
LINK = "behind.pth"


def make_environment(directory: Path) -> Path:
    """The environment's interpreter; made (a minute, 0.9 GB) if it is not there whole.

    Raises:
        ConfigError: the directory holds something else.
    """
    python = directory / "bin" / "python"
    if not (directory / READY).is_file():
        if directory.exists() and any(directory.iterdir()) and not (directory / "pyvenv.cfg").is_file():
            required = "a new directory or a virtual environment's"
            raise ConfigError(where=f"--peers {directory}", required=required, received="another directory")
        venv.create(directory, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(CONSTRAINTS)]
        subprocess.run([*install, *PACKAGES], check=True)  # before the link: pip would take ours for installed
        name = f"python{sys.version_info.major}.{sys.version_info.minor}"
        site = directory / "lib" / name / "site-packages"
        (site / LINK).write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
        (directory / READY).touch()
    return python


def measure_inside(directory: Path, module: str, arguments: Sequence[str]) -> None:
    """Goes on as ``python -m module arguments`` in the environment. Does not return."""
    python = str(make_environment(directory.resolve()))
    os.execv(python, [python, "-m", module, *arguments])
