"""The import arrows of the design, read from the source: what each part of the tree may import, and what none may do.

kernels    nothing of ours but each other
rgalign    training and bench only from cli/, and there only inside a function
training   neither the serving side (recommender, batcher, service) nor bench
what serving and training share: not the serving side either, or training would get it at second hand
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINKED = ("kernels", "training", "bench")
SERVING = ("rgalign.recommender", "rgalign.batcher", "rgalign.service")
SHARED = ("schema", "intents", "prompt", "models", "reasoner", "metrics", "data")
UNSAFE_MODULES = ("pickle", "cloudpickle", "dill", "joblib", "jinja2", "marshal", "shelve")
UNSAFE_CALLS = ("torch.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec")


@dataclass(frozen=True)
class Module:
    name: str  # rgalign.training.stage1, whichever way the file is reached
    source: str


@dataclass(frozen=True)
class Import:
    target: str
    line: int
    in_function: bool


def library() -> list[Module]:
    """Every module of ours once: the links' targets in place of the links."""
    paths = [p for p in (ROOT / "rgalign").rglob("*.py") if not set(p.relative_to(ROOT).parts[1:2]) & set(LINKED)]
    modules = [Module(dotted(path.relative_to(ROOT)), path.read_text()) for path in paths]
    for folder in LINKED:
        for path in (ROOT / folder).rglob("*.py"):
            modules.append(Module("rgalign." + dotted(path.relative_to(ROOT)), path.read_text()))
    return sorted(modules, key=lambda module: module.name)


def dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def imports(module: Module) -> Iterator[Import]:
    """Every name a module imports. ``from a import b`` counts as a and as a.b, for b may be a module."""

    def visit(node: ast.AST, in_function: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, in_function)
        elif isinstance(node, ast.ImportFrom):
            # Whether the module is a package does not matter: both readings are inside rgalign.
            parent = module.name.split(".")[: -node.level] if node.level else []
            base = ".".join([*parent, *([node.module] if node.module else [])])
            yield Import(base, node.lineno, in_function)
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno, in_function)
        for child in ast.iter_child_nodes(node):
            yield from visit(
                child, in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            )

    return visit(ast.parse(module.source), in_function=False)


def within(name: str, *parents: str) -> bool:
    return any(name == parent or name.startswith(parent + ".") for parent in parents)


def forbidden(module: Module, found: Import) -> bool:
    offline = ("rgalign.training", "rgalign.bench")
    if within(found.target, *LINKED):  # only importable with the repository root on sys.path: the trap
        return True
    if within(module.name, "rgalign.kernels"):
        return within(found.target, "rgalign") and not within(found.target, "rgalign.kernels")
    if within(module.name, "rgalign.bench"):
        return False
    if within(module.name, "rgalign.training"):
        return within(found.target, "rgalign.bench", *SERVING)
    if module.name.startswith("rgalign.cli."):
        return within(found.target, *offline) and not found.in_function
    if within(found.target, *offline):
        return True
    return within(found.target, *SERVING) and within(module.name, *(f"rgalign.{name}" for name in SHARED))


def wrong_arrows(modules: list[Module]) -> list[str]:
    return sorted(
        {
            f"{module.name}:{found.line} imports {found.target}"
            for module in modules
            for found in imports(module)
            if forbidden(module, found)
        }
    )


def unsafe(module: Module) -> Iterator[str]:
    """Ways to run code that data names: pickles, Jinja templates, code from a model's repository."""
    for found in imports(module):
        if within(found.target, *UNSAFE_MODULES):
            yield f"{module.name}:{found.line} imports {found.target}"
    for node in ast.walk(ast.parse(module.source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in UNSAFE_CALLS or called.endswith(".apply_chat_template"):
            yield f"{module.name}:{node.lineno} calls {called}"
        loader = [ast.unparse(value) for value in (*node.args[1:], *(keyword.value for keyword in node.keywords))]
        if called == "yaml.load" and not any(name.endswith("SafeLoader") for name in loader):
            yield f"{module.name}:{node.lineno} calls yaml.load without a loader named ...SafeLoader"
        for keyword in node.keywords:
            allows = not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
            if keyword.arg in ("trust_remote_code", "allow_pickle") and allows:
                yield f"{module.name}:{node.lineno} passes {keyword.arg}"


def test_every_arrow_is_allowed() -> None:
    modules = library()
    assert len(modules) > 10
    assert wrong_arrows(modules) == []


def test_no_module_runs_code_that_data_names() -> None:
    assert [line for module in library() for line in unsafe(module)] == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("rgalign.kernels.pool", "import rgalign.schema"),
        ("rgalign.kernels.pool", "from .. import errors"),
        ("rgalign.cli.train", "import rgalign.training.stage1"),
        ("rgalign.cli.train", "if True:\n    from rgalign.bench import throughput"),
        ("rgalign.recommender", "def f():\n    from rgalign.training import embed"),
        ("rgalign.models.qe_rec", "from rgalign import training"),
        ("rgalign.models.qe_rec", "from ..training.latents import LatentStore"),
        ("rgalign.metrics.ranking", "import rgalign.bench"),
        ("rgalign.prompt", "from rgalign.service import app"),
        ("rgalign.training.loop", "from rgalign.recommender import Recommender"),
        ("rgalign.training.loop", "def f():\n    import rgalign.batcher"),
        ("rgalign.training.loop", "from rgalign import bench"),
        ("rgalign.bench.serve", "import training.stage1"),
        ("rgalign.index", "import kernels"),
    ],
)
def test_a_wrong_arrow_is_seen(name: str, source: str) -> None:
    assert wrong_arrows([Module(name, source)]) != []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("rgalign.cli.train", "def train():\n    from rgalign.training.stage1 import train_stage1"),
        ("rgalign.training.stage1", "from rgalign.models.qe_rec import QERec\nfrom rgalign.training import latents"),
        ("rgalign.bench.serve", "import rgalign.service, rgalign.training.stage1"),
        ("rgalign.scoring", "from rgalign.kernels.score import score"),
        ("rgalign.kernels.score", "from rgalign.kernels.running_topk import insert"),
        ("rgalign.service.app", "from rgalign.recommender import Recommender"),
    ],
)
def test_a_right_arrow_passes(name: str, source: str) -> None:
    assert wrong_arrows([Module(name, source)]) == []


def test_a_safe_loader_passes() -> None:
    assert list(unsafe(Module("rgalign.x", "import yaml\nyaml.load(text, Loader=yaml.CSafeLoader)"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from jinja2 import Template",
        "import torch\ntorch.load(path, weights_only=True)",
        "import yaml\nyaml.load(text)",
        "import yaml\nyaml.load(text, yaml.Loader)",
        "import yaml\nyaml.load(text, Loader=yaml.FullLoader)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=trust)",
        "np.load(path, allow_pickle=True)",
        "self.tokenizer.apply_chat_template(messages)",
    ],
)
def test_an_unsafe_line_is_seen(source: str) -> None:
    assert list(unsafe(Module("rgalign.x", source))) != []
