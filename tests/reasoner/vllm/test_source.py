"""The fake of test_vllm.py against vLLM's own source: RGALIGN_VLLM_SOURCE=DIR, a wheel unpacked without dependencies.

Nothing of vLLM is imported: its files are parsed.
"""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

GIVEN = os.environ.get("RGALIGN_VLLM_SOURCE", "")
pytestmark = pytest.mark.skipif(not GIVEN, reason="RGALIGN_VLLM_SOURCE is not set (docs/vllm.md)")
PASSED = {
    *("model", "runner", "convert", "skip_tokenizer_init", "trust_remote_code", "dtype", "quantization"),
    *("gpu_memory_utilization", "pooler_config", "compilation_config", "seed"),
}
THROUGH_KWARGS = {"max_model_len", "max_num_batched_tokens", "enable_prefix_caching"}


def named(path: str, name: str) -> ast.AST:
    tree = ast.parse((Path(GIVEN) / "vllm" / path).read_text(encoding="utf-8"))
    kinds = (ast.ClassDef, ast.FunctionDef)
    return next(node for node in ast.walk(tree) if isinstance(node, kinds) and node.name == name)


def arguments(node: ast.AST, method: str) -> set[str]:
    found = next(each for each in ast.walk(node) if isinstance(each, ast.FunctionDef) and each.name == method)
    return {each.arg for each in (*found.args.args, *found.args.kwonlyargs)}


def fields(node: ast.AST) -> set[str]:
    assert isinstance(node, ast.ClassDef)
    return {
        each.target.id for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }


def test_the_arguments_of_the_engine() -> None:
    assert arguments(named("entrypoints/llm.py", "LLM"), "__init__") >= PASSED
    assert fields(named("engine/arg_utils.py", "EngineArgs")) >= PASSED | THROUGH_KWARGS
    assert "max_cudagraph_capture_size" in fields(named("config/compilation.py", "CompilationConfig"))


def test_the_pooler_and_encode() -> None:
    wanted = {"task", "pooling_type", "seq_pooling_type", "tok_pooling_type", "use_activation"}
    assert fields(named("config/pooler.py", "PoolerConfig")) >= wanted
    encode = arguments(named("entrypoints/pooling/offline.py", "encode"), "encode")
    assert encode >= {"prompts", "pooling_params", "use_tqdm", "lora_request", "pooling_task", "tokenization_kwargs"}
    assert arguments(named("outputs.py", "PoolingRequestOutput"), "__init__") >= {
        "outputs",
        "error",
        "prompt_token_ids",
    }
    assert "data" in fields(named("outputs.py", "PoolingOutput"))


def test_what_is_raised() -> None:
    base = named("exceptions.py", "VLLMError")
    assert isinstance(base, ast.ClassDef)
    assert [ast.unparse(each) for each in base.bases] == ["Exception"]
    dead = named("v1/engine/exceptions.py", "EngineDeadError")
    assert isinstance(dead, ast.ClassDef)
    assert [ast.unparse(each) for each in dead.bases] == ["VLLMServerError"]
    text = (Path(GIVEN) / "vllm/entrypoints/pooling/offline.py").read_text(encoding="utf-8")
    assert "pooling_task required for `LLM.encode`" in text
    assert "Try switching the model's pooling_task" in text
