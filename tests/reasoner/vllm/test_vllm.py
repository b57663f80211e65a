"""The vLLM adapter against a fake of vLLM 0.33.0: its signatures, its defaults, and the ways in which it fails.

The fake accepts the names that ``LLM.__init__`` and ``EngineArgs`` accept there, refuses what they refuse, and computes
with transformers, normalised unless told otherwise, as vLLM does by default.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from rgalign.errors import ConfigError, DataError
from rgalign.reasoner.adapter import EngineError, EngineUnavailableError
from rgalign.reasoner.hf import HFReasoner
from rgalign.reasoner.protocol import Reasoner
from rgalign.reasoner.vllm import VllmReasoner

HIDDEN, VOCABULARY = 32, 64
PREFIX = list(range(2, 22))
PROMPTS = [np.random.default_rng(row).integers(0, VOCABULARY, 3 + 5 * row).astype(np.int32) for row in range(5)]
# Of vllm/entrypoints/llm.py (runner ... pooler_config) and, through **kwargs, vllm/engine/arg_utils.py EngineArgs.
ACCEPTED = {
    *("model", "runner", "convert", "tokenizer", "skip_tokenizer_init", "trust_remote_code", "tensor_parallel_size"),
    *("dtype", "quantization", "seed", "gpu_memory_utilization", "enforce_eager", "hf_overrides", "pooler_config"),
    *("compilation_config", "max_model_len", "max_num_batched_tokens", "max_num_seqs", "enable_prefix_caching"),
}


class VLLMError(Exception):
    """vllm.exceptions.VLLMError: not a RuntimeError."""


class EngineDeadError(VLLMError):
    pass


@dataclasses.dataclass
class PoolerConfig:
    task: str | None = None
    pooling_type: str | None = None
    seq_pooling_type: str | None = None
    tok_pooling_type: str | None = None
    use_activation: bool | None = None  # None: normalised


class LLM:
    """``failure`` is set by a test; ``calls`` are the prompts of each ``encode``."""

    failure = ""
    started: dict[str, Any] = {}  # noqa: RUF012
    calls: list[list[list[int]]] = []  # noqa: RUF012

    def __init__(self, model: str, **arguments: Any) -> None:
        unknown = set(arguments) - ACCEPTED
        if unknown:
            raise TypeError(f"EngineArgs.__init__() got an unexpected keyword argument {unknown.pop()!r}")
        if LLM.failure == "memory":  # in the engine's process; here comes what wraps it
            try:
                raise ValueError("No available memory for the cache blocks. Try increasing `gpu_memory_utilization`")
            except ValueError as error:
                raise RuntimeError("Engine core initialization failed. See root cause above.") from error
        LLM.started = {"model": model, **arguments}
        LLM.calls = []
        self.pooler: PoolerConfig = arguments["pooler_config"]
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    def encode(
        self,
        prompts: Any,
        pooling_params: Any = None,
        *,
        use_tqdm: bool = True,
        lora_request: Any = None,
        pooling_task: str | None = None,
        tokenization_kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        if LLM.started["runner"] != "pooling":
            raise ValueError("LLM.encode() is only supported for pooling models.")
        if pooling_task is None:
            raise ValueError("pooling_task required for `LLM.encode`.")
        if pooling_task != self.pooler.task:
            raise ValueError(f'Try switching the model\'s pooling_task via `PoolerConfig(task="{pooling_task}")`')
        if LLM.failure == "dead":
            raise EngineDeadError("EngineCore encountered an issue. See stack trace (above) for the root cause.")
        LLM.calls.append([prompt["prompt_token_ids"] for prompt in prompts])
        return [self._answer(prompt["prompt_token_ids"]) for prompt in prompts][
            : -1 if LLM.failure == "short" else None
        ]

    def _answer(self, ids: list[int]) -> Any:
        assert len(ids) <= LLM.started["max_model_len"]
        assert self.pooler.seq_pooling_type == "LAST"
        with torch.no_grad():
            state = self.model.get_decoder()(torch.tensor([ids])).last_hidden_state[0, -1]
        if self.pooler.use_activation is not False:
            state = torch.nn.functional.normalize(state, dim=-1)
        if LLM.failure == "nan":
            state[3] = float("nan")
        if LLM.failure == "projected":
            state = state[:7]
        error = SimpleNamespace(code="internal") if LLM.failure == "request" else None
        return SimpleNamespace(outputs=SimpleNamespace(data=state), finished=True, error=error, prompt_token_ids=ids)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    package = ModuleType("vllm")
    package.__spec__ = SimpleNamespace(name="vllm")  # type: ignore[assignment]  # as find_spec asks for it
    package.__version__ = "0.33.0"  # type: ignore[attr-defined]
    package.LLM = LLM  # type: ignore[attr-defined]
    config, exceptions = ModuleType("vllm.config"), ModuleType("vllm.exceptions")
    config.PoolerConfig = PoolerConfig  # type: ignore[attr-defined]
    exceptions.VLLMError = VLLMError  # type: ignore[attr-defined]
    for module in (package, config, exceptions):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(LLM, "failure", "")
    return package


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen3")
    torch.manual_seed(0)
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 256, "initializer_range": 0.3}
    Qwen3ForCausalLM(Qwen3Config(vocab_size=VOCABULARY, **sizes, **more)).save_pretrained(path)
    tokenizer = Tokenizer(models.WordLevel({f"t{row}": row for row in range(VOCABULARY)}, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="t1").save_pretrained(path)
    return path


def test_the_raw_state_of_each_prompt_in_order(vllm: ModuleType, model: Path) -> None:
    reasoner: Reasoner = VllmReasoner.from_pretrained(str(model), max_tokens=64, max_batch_tokens=128)
    done: list[int] = []
    found = reasoner.embed(PROMPTS, prefix_ids=PREFIX, on_prompts=done.append)
    expected = HFReasoner.from_pretrained(str(model)).embed(PROMPTS, prefix_ids=PREFIX)
    assert expected.norm(dim=1).min() > 2.0  # a normalised answer would be seen
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    assert sum(done) == len(PROMPTS)
    reasoner.embed(PROMPTS[:1], prefix_ids=PREFIX)
    assert LLM.calls[0] == [PREFIX]  # warmed once
    assert [len(call) for call in LLM.calls] == [1, len(PROMPTS), 1]
    assert all(prompt[: len(PREFIX)] == PREFIX for call in LLM.calls for prompt in call)


def test_what_vllm_is_told(vllm: ModuleType, model: Path) -> None:
    reasoner = VllmReasoner.from_pretrained(str(model), dtype="fp8", max_tokens=64, max_batch_tokens=4096)
    told = LLM.started
    assert (told["runner"], told["convert"], told["skip_tokenizer_init"], told["enable_prefix_caching"]) == (
        "pooling",
        "embed",
        True,
        True,
    )
    assert (told["quantization"], told["dtype"], told["trust_remote_code"]) == ("fp8", "bfloat16", False)
    assert told["compilation_config"] == {"max_cudagraph_capture_size": 2048}
    assert dataclasses.asdict(told["pooler_config"])["use_activation"] is False
    assert (reasoner.provenance["engine"], reasoner.provenance["dtype"]) == ("vllm 0.33.0", "fp8")
    assert reasoner.hash != VllmReasoner.from_pretrained(str(model), max_tokens=64).hash


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("dead", "vllm 0.33.0: required an engine that runs; received EngineDeadError: EngineCore encountered"),
        ("nan", "prompt 0: required finite numbers; received NaN"),
        ("projected", r"prompt 0: required 32 numbers.*received shape \(7,\)"),
        ("short", "required 5 answers; received 4"),
        ("request", "prompt 0: required an answer; received namespace"),
    ],
)
def test_an_answer_that_is_no_state(failure: str, message: str, vllm: ModuleType, model: Path) -> None:
    reasoner = VllmReasoner.from_pretrained(str(model), max_tokens=64)
    assert reasoner.embed(PROMPTS).shape == (5, HIDDEN)
    LLM.failure = failure
    with pytest.raises(EngineError, match=message):
        reasoner.embed(PROMPTS)


def test_no_memory_says_what_to_lower(vllm: ModuleType, model: Path) -> None:
    LLM.failure = "memory"
    with pytest.raises(EngineError, match="enough memory on the GPU .a smaller gpu_memory"):
        VllmReasoner.from_pretrained(str(model))


def test_the_package_is_missing_or_another_version(
    vllm: ModuleType, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("0.32.1", "0.34.0", "1.0.0", "unknown"):
        vllm.__version__ = version  # type: ignore[attr-defined]
        with pytest.raises(EngineUnavailableError, match=rf"vllm >= 0.33, < 0.34 .*received {version}"):
            VllmReasoner.from_pretrained(str(model))
    monkeypatch.delitem(sys.modules, "vllm")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineUnavailableError, match="not installed"):
        VllmReasoner.from_pretrained(str(model))


def test_a_package_that_does_not_load(vllm: ModuleType, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> ModuleType:
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr("rgalign.reasoner.adapter.importlib.import_module", broken)
    with pytest.raises(EngineUnavailableError, match=r"received libcudart.so.13: cannot open"):
        VllmReasoner.from_pretrained(str(model))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "at least one prompt"),
        ([np.array([], np.int32)], "prompt 0: required a non-empty row"),
        ([PROMPTS[0], np.array([VOCABULARY], np.int32)], "prompt 1: required token ids in 0..63"),
        ([np.full(64, 5, np.int32)], "at most 64 tokens with the prefix; received 84"),
        ([np.array([0.5])], "received float64"),
    ],
)
def test_unusable_prompts_never_reach_the_engine(
    prompts: list[Any], message: str, vllm: ModuleType, model: Path
) -> None:
    reasoner = VllmReasoner.from_pretrained(str(model), max_tokens=64)
    with pytest.raises(DataError, match=message):
        reasoner.embed(prompts, prefix_ids=PREFIX)
    assert LLM.calls == []


def changed(model: Path, out: Path, **values: Any) -> Path:
    out.mkdir()
    for path in model.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | values))
    return out


def test_a_checkpoint_that_does_not_fit(vllm: ModuleType, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rgalign engine build MODEL --for vllm.*received plain weights"):
        VllmReasoner.from_pretrained(str(model), dtype="int8")
    packed = changed(model, tmp_path / "packed", quantization_config={"quant_method": "compressed-tensors"})
    with pytest.raises(ConfigError, match="plain weights for bf16; received compressed-tensors"):
        VllmReasoner.from_pretrained(str(packed))
    with pytest.raises(ConfigError, match="prompts are not split; received 100"):
        VllmReasoner.from_pretrained(str(model), max_tokens=200, max_batch_tokens=100)
    exported = changed(model, tmp_path / "exported")
    (exported / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(ConfigError, match="would return the projection, not the state"):
        VllmReasoner.from_pretrained(str(exported))
