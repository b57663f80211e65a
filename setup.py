"""Builds `rgalign` with its C++ extension `rgalign._C` (CMake, pybind11).

The packages are listed by hand: automatic discovery would take the root folders `kernels/`, `training/` and `bench/`
for top-level packages, and a top-level `kernels` breaks transformers. They are `rgalign.kernels` and so on, reached
through the committed relative links `rgalign/kernels -> ../kernels`. A folder is listed from its first module on.
"""

import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()

PACKAGES = [
    "rgalign",
    "rgalign.batcher",
    "rgalign.bench",
    "rgalign.bench.gpu",
    "rgalign.bench.peers",
    "rgalign.bundle",
    "rgalign.cli",
    "rgalign.data",
    "rgalign.data.simulator",
    "rgalign.data.sources",
    "rgalign.index",
    "rgalign.kernels",
    "rgalign.metrics",
    "rgalign.metrics.online",
    "rgalign.models",
    "rgalign.planner",
    "rgalign.playground",
    "rgalign.reasoner",
    "rgalign.reasoner.engine",
    "rgalign.reasoner.engine.cuda",
    "rgalign.reasoner.tensorrt_llm",
    "rgalign.recommender",
    "rgalign.service",
    "rgalign.training",
    "rgalign.training.alignment",
    "rgalign.training.loop",
    "rgalign.training.parity",
    "rgalign.training.reward",
    "rgalign.training.selection",
    "rgalign.training.tables",
    "rgalign.training.teachers",
]


class CMakeBuild(build_ext):
    """Configures and builds one CMake target into the place setuptools names for the extension."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11  # a build requirement: absent when only metadata is asked for

        # Absolute: an in-place (editable) build answers a path relative to the root.
        target = (ROOT / self.get_ext_fullpath(ext.name)).resolve()
        build_dir = (Path(self.build_temp) / ext.name).resolve()
        build_dir.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            "-S",
            str(ROOT),
            "-B",
            str(build_dir),
            "-G",
            "Ninja",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build_dir), "--target", "_C"], check=True)


setup(
    packages=PACKAGES,
    package_data={"": ["py.typed", "*.pyi", "*.sh", "*.yaml", "*.json", "*.html", "*.css"]},
    include_package_data=False,
    ext_modules=[Extension("rgalign._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
