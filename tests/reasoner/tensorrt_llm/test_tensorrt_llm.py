"""The TensorRT-LLM adapter against a fake of 1.1, 1.2 and of the later ``encode``: argument forms, packing, failures.

The fake runs whatever class is registered under the architecture's name, on packed tokens, and computes with
transformers. 1.1 takes additional outputs as objects, 1.2 as names; each refuses the other's.
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
from rgalign.reasoner.other_engines import load_other_engine
from rgalign.reasoner.tensorrt_llm.reasoner import TensorRTReasoner

VOCABULARY = 64
PREFIX = list(range(2, 22))
PROMPTS = [np.random.default_rng(row).integers(0, VOCABULARY, 3 + 5 * row).astype(np.int32) for row in range(5)]
ACCEPTED = {
    *("backend", "skip_tokenizer_init", "trust_remote_code", "dtype", "max_batch_size", "max_num_tokens"),
    *("max_seq_len", "disable_overlap_scheduler", "kv_cache_config", "cuda_graph_config"),
}
CLASSES: dict[str, Any] = {}


@dataclasses.dataclass
class KvCacheConfig:
    enable_block_reuse: bool = True
    free_gpu_memory_fraction: float | None = None
    tokens_per_block: int = 32


@dataclasses.dataclass
class AdditionalModelOutput:
    name: str
    gather_context: bool


@dataclasses.dataclass
class SamplingParams:
    max_tokens: int = 32
    temperature: float | None = None
    end_id: int | None = None
    detokenize: bool = True
    additional_model_outputs: list[Any] | None = None


class OriginalQwen3:
    def __init__(self, path: str) -> None:
        self._hf = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.config = self._hf.config

    def model(self, *, input_ids: torch.Tensor, attn_metadata: Any, **others: Any) -> torch.Tensor:
        rows = torch.split(input_ids[: attn_metadata.num_tokens], attn_metadata.seq_lens_cuda.tolist())
        with torch.no_grad():
            states = [self._hf.get_decoder()(row[None]).last_hidden_state[0] for row in rows]
        return torch.cat([*states, torch.full((3, self.config.hidden_size), 7.0)])  # padded for a graph


class LLM:
    version, failure = "1.2.1", ""
    calls: list[list[list[int]]] = []  # noqa: RUF012
    started: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, model: str, **arguments: Any) -> None:
        unknown = set(arguments) - ACCEPTED - ({"encode_only"} if hasattr(self, "encode") else set())
        if unknown:
            raise ValueError(f"{unknown.pop()}: Extra inputs are not permitted")
        LLM.started, LLM.calls = arguments, []
        self.network = CLASSES["Qwen3ForCausalLM"](model)

    def run(self, prompts: list[list[int]]) -> dict[str, torch.Tensor]:
        LLM.calls.append(prompts)
        packed = torch.tensor([token for prompt in prompts for token in prompt])
        lengths = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int32)
        metadata = SimpleNamespace(seq_lens_cuda=lengths, num_tokens=len(packed), padded_num_tokens=len(packed) + 3)
        found: dict[str, torch.Tensor] = self.network.forward(attn_metadata=metadata, input_ids=packed)
        return found

    def generate(self, prompts: Any, sampling_params: Any = None, use_tqdm: bool = True) -> list[Any]:
        if self.failure == "request":
            raise RuntimeError("RequestError: the request was dropped")
        wanted = sampling_params.additional_model_outputs
        if any(isinstance(each, str) == LLM.version.startswith("1.1") for each in wanted):
            raise TypeError("additional_model_outputs: the other version's form")
        found = self.run(prompts)
        assert found["logits"].shape == (len(prompts), VOCABULARY)
        extra = [{} if self.failure == "none" else {"hidden_states": row[None, None]} for row in found["hidden_states"]]
        return [SimpleNamespace(outputs=[SimpleNamespace(additional_generation_outputs=each)]) for each in extra]


class EncodeLLM(LLM):
    def encode(self, inputs: Any, add_special_tokens: bool = True) -> list[Any]:
        assert LLM.started["encode_only"]
        assert len(inputs) <= LLM.started["max_batch_size"]
        return [SimpleNamespace(logits=row) for row in self.run(inputs)["logits"]]


def register_auto_model(name: str) -> Any:
    def put(cls: Any) -> Any:
        CLASSES[name] = cls
        return cls

    return put


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    contents: dict[str, dict[str, Any]] = {
        "tensorrt_llm": {"LLM": LLM, "SamplingParams": SamplingParams, "__version__": "1.2.1"},
        "tensorrt_llm.llmapi": {"KvCacheConfig": KvCacheConfig},
        "tensorrt_llm.sampling_params": {"AdditionalModelOutput": AdditionalModelOutput},
        "tensorrt_llm._torch": {},
        "tensorrt_llm._torch.models": {},
        "tensorrt_llm._torch.models.modeling_qwen3": {"Qwen3ForCausalLM": OriginalQwen3},
        "tensorrt_llm._torch.models.modeling_utils": {"register_auto_model": register_auto_model},
    }
    for name, values in contents.items():
        module = ModuleType(name)
        module.__spec__ = SimpleNamespace(name=name)  # type: ignore[assignment]
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(LLM, "version", "1.2.1")
    monkeypatch.setattr(LLM, "failure", "")
    monkeypatch.setenv("TLLM_WORKER_USE_SINGLE_PROCESS", "1")
    return sys.modules["tensorrt_llm"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen3")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 256, "initializer_range": 0.3}
    Qwen3ForCausalLM(Qwen3Config(vocab_size=VOCABULARY, **sizes, **more)).save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"rope_theta": 10000.0}))
    tokenizer = Tokenizer(models.WordLevel({f"t{row}": row for row in range(VOCABULARY)}, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="t1").save_pretrained(path)
    return path


@pytest.mark.parametrize("version", ["1.1.0", "1.2.1", "1.3.0"])
def test_the_raw_state_in_every_version(version: str, tensorrt: Any, model: Path) -> None:
    tensorrt.__version__ = LLM.version = version
    if version == "1.3.0":
        tensorrt.LLM = EncodeLLM
    reasoner = TensorRTReasoner.from_pretrained(str(model), max_tokens=64, max_batch_prompts=2)
    found = reasoner.embed(PROMPTS, prefix_ids=PREFIX)
    expected = HFReasoner.from_pretrained(str(model)).embed(PROMPTS, prefix_ids=PREFIX)
    assert expected.norm(dim=1).min() > 2.0
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    warmed = [PREFIX] if version != "1.3.0" else []
    assert [len(call) for call in LLM.calls] == [*(1 for _ in warmed), 2, 2, 1]
    assert version == "1.3.0" or (LLM.calls[0] == warmed and LLM.started["kv_cache_config"].enable_block_reuse)


def test_failures_are_typed(tensorrt: Any, model: Path) -> None:
    reasoner = load_other_engine("tensorrt_llm", str(model), "bf16", max_tokens=64)
    LLM.failure = "none"
    with pytest.raises(EngineError, match=r"additional output 'hidden_states'.*received none"):
        reasoner.embed(PROMPTS)
    LLM.failure = "request"
    with pytest.raises(EngineError, match="the request was dropped"):
        reasoner.embed(PROMPTS)
    with pytest.raises(DataError, match="at most 64 tokens"):
        reasoner.embed([np.full(65, 3, np.int32)])


def test_what_is_refused(tensorrt: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype, message in (("int8", "--for tensorrt-llm"), ("fp8", "ModelOpt"), ("fp32", "one of bf16")):
        with pytest.raises(ConfigError, match=message):
            load_other_engine("tensorrt_llm", str(model), dtype)
    with pytest.raises(ConfigError, match="pooling ltp"):
        load_other_engine("tensorrt_llm", str(model), "bf16", pooling="eos")
    with pytest.raises(ConfigError, match=r"LLM.encode"):
        TensorRTReasoner.from_pretrained(str(model), api="encode")
    monkeypatch.setenv("TLLM_WORKER_USE_SINGLE_PROCESS", "0")
    with pytest.raises(ConfigError, match="required 1 or not set"):
        TensorRTReasoner.from_pretrained(str(model))


def test_absent(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rgalign.reasoner.adapter.is_installed", lambda package: False)
    with pytest.raises(EngineUnavailableError, match=r"pip install 'tensorrt-llm.*not installed"):
        load_other_engine("tensorrt_llm", str(model), "bf16")
    with pytest.raises(EngineUnavailableError, match=r"pip install 'rgalign\[vllm\]'.*not installed"):
        load_other_engine("vllm", str(model), "bf16")
