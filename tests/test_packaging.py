"""The package as it is built and imported: links, listed packages, declared dependencies, a light import, the wheel."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import rgalign

ROOT = Path(__file__).parent.parent
LINKED = ("kernels", "training", "bench")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run_python(code: str, cwd: Path, *arguments: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_init_file_where_it_would_shadow_an_installed_package() -> None:
    stray = [path for folder in (*LINKED, "tests") for path in (ROOT / folder).rglob("__init__.py")]
    assert stray == []


@pytest.mark.parametrize("name", LINKED)
def test_the_links_are_relative(name: str) -> None:
    link = ROOT / "rgalign" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"
    assert link.is_dir()


def test_transformers_builds_a_model_with_the_repository_root_on_its_path() -> None:
    # A root folder kernels/ with an __init__.py is taken for Hugging Face's package of that name. What then fails
    # differs by version of transformers (5.23 asks for a version number and passes), so the mistake itself is asserted.
    output = run_python(
        "import importlib.util, sys; assert '' in sys.path\n"
        "from transformers import AutoModelForCausalLM, LlamaConfig\n"
        "config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1,\n"
        "                     num_attention_heads=2, num_key_value_heads=1)\n"
        "assert AutoModelForCausalLM.from_config(config).num_parameters() > 0\n"
        "found = importlib.util.find_spec('kernels')\n"
        "print('found', found and found.origin)",
        cwd=ROOT,
    )
    assert output.startswith("found")
    assert str(ROOT) not in output


def package_folders() -> set[Path]:
    """Folders under rgalign, through the links, that hold modules."""
    tops = [ROOT / "rgalign", *(ROOT / "rgalign" / name for name in LINKED)]
    return {path.parent for top in tops for path in top.rglob("*.py")}


def test_setup_lists_every_folder_that_holds_modules() -> None:
    tree = ast.parse((ROOT / "setup.py").read_text())
    assignments = [node for node in tree.body if isinstance(node, ast.Assign)]
    (listed,) = [ast.literal_eval(a.value) for a in assignments if ast.unparse(a.targets[0]) == "PACKAGES"]
    named = {".".join(folder.relative_to(ROOT).parts) for folder in package_folders()}
    assert named <= set(listed)
    for package in listed:
        assert (ROOT / package.replace(".", "/")).is_dir(), package


def normalized(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement)[0].lower().replace("_", "-")


def top_level_imports(path: Path, *, in_functions: bool) -> set[str]:
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not in_functions:
            return
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.split(".")[0])
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return names - set(sys.stdlib_module_names) - {"rgalign"}


def test_the_core_imports_at_its_top_only_what_the_core_requires() -> None:
    core = {normalized(requirement) for requirement in PROJECT["dependencies"]}
    extras = {name: {normalized(each) for each in listed} for name, listed in PROJECT["optional-dependencies"].items()}
    # Folders that only a command imports, in a function.
    also = {"service": extras["serve"], "playground": extras["play"]}
    distributions = importlib.metadata.packages_distributions()
    for path in (ROOT / "rgalign").rglob("*.py"):
        folder = path.relative_to(ROOT).parts[1]
        if folder in LINKED:
            continue
        for name in top_level_imports(path, in_functions=False):
            found = {normalized(distribution) for distribution in distributions.get(name, [name])}
            allowed = core | also.get(folder, set())
            allowed |= extras["ray-serve"] if path.name == "ray_serve.py" else set()
            assert found & allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_everything_imported_anywhere_is_declared() -> None:
    extras = PROJECT["optional-dependencies"]
    declared = {normalized(r) for r in PROJECT["dependencies"]} | {normalized(r) for e in extras.values() for r in e}
    distributions = importlib.metadata.packages_distributions()
    paths = {path for folder in ("rgalign", *LINKED, "tests") for path in (ROOT / folder).rglob("*.py")}
    undeclared = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in paths
        for name in top_level_imports(path, in_functions=True)
        if not {normalized(distribution) for distribution in distributions.get(name, [name])} & declared
    }
    assert undeclared == set()


def test_importing_rgalign_is_light_and_its_names_resolve() -> None:
    heavy = "('torch', 'transformers', 'pyarrow', 'numpy', 'pydantic')"
    output = run_python(f"import sys, rgalign; print([m for m in {heavy} if m in sys.modules])", cwd=ROOT.parent)
    assert output.strip() == "[]"
    for name in rgalign.__all__:
        assert getattr(rgalign, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Recomender'"):
        _ = rgalign.Recomender  # type: ignore[attr-defined]


def test_the_version_is_said_once() -> None:
    assert importlib.metadata.version("rgalign") == rgalign.__version__
    assert f"## {rgalign.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_the_wheel_of_the_sdist_works_away_from_the_repository(tmp_path: Path) -> None:
    # As a package index would have it built: in the sdist the links have become folders.
    ignored = shutil.ignore_patterns(".*", "*.so", "*.egg-info", "__pycache__", "build", "dist", "runs", "demo")
    shutil.copytree(ROOT, tmp_path / "checkout", symlinks=True, ignore=ignored)
    build = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
    tools = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    run_python(build, tmp_path / "checkout", "build_sdist", str(tmp_path), **tools)
    (sdist,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(sdist, tmp_path / "sdist")  # tarfile's filters are there from Python 3.11.4 on
    (source,) = (tmp_path / "sdist").iterdir()
    run_python(build, source, "build_wheel", str(tmp_path), **tools)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)

    assert {path.name for path in site.iterdir()} == {"rgalign", f"rgalign-{rgalign.__version__}.dist-info"}
    needed = {path for folder in package_folders() for path in folder.glob("*.*") if path.suffix not in (".md", ".so")}
    assert {ROOT / "rgalign" / name for name in ("topk.py", "py.typed", "_C.pyi", "training/stage1.py")} <= needed
    for path in needed:
        assert (site / path.relative_to(ROOT)).is_file(), path
    answer = run_python(
        "import numpy as np, rgalign.topk, rgalign.training\n"
        f"assert rgalign.__file__.startswith({str(site)!r}), rgalign.__file__\n"
        "print(rgalign.topk.topk(np.array([[1, 3, 2]], np.float32), 2).rows.tolist())",
        tmp_path,
        PYTHONPATH=str(site),
    )
    assert answer.strip() == "[[1, 2]]"
