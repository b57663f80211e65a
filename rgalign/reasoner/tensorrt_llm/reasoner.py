"""TensorRTReasoner: latent queries from TensorRT-LLM's PyTorch backend.

Written for 1.2, with the argument forms of 1.1; from 1.3 on ``llm.encode()`` is used where it is. What has not been
run, and how to run it: docs/tensorrt_llm.md. 8-bit types are those that TensorRT-LLM has for Qwen3: ``int8`` quantises
weights only and computes in 16 bits, ``fp8`` computes in 8 bits. W8A8 int8 does not exist there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, cat

from rgalign.errors import ConfigError
from rgalign.files import sha256_json
from rgalign.reasoner.adapter import (
    EngineError,
    Served,
    engine_failure,
    load_package,
    served_checkpoint,
    stacked_states,
    whole_prompts,
)
from rgalign.reasoner.prefix_tree import TokenIds
from rgalign.reasoner.pretrained import load_tokenizer, model_fingerprint
from rgalign.reasoner.tensorrt_llm.latent_model import ARCHITECTURE, OUTPUT, register_latent_model

TensorRTDtype = Literal["bf16", "fp16", "int8", "fp8"]
Api = Literal["generate", "encode"]
QUANTIZATION = {"bf16": "", "fp16": "", "int8": "W8A16", "fp8": "FP8"}
TORCH_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "int8": "bfloat16", "fp8": "bfloat16"}
SINGLE_PROCESS = "TLLM_WORKER_USE_SINGLE_PROCESS"
INSTALL = "in an environment of its own, docs/tensorrt_llm.md: pip install 'tensorrt-llm>=1.1,<2'"
MEMORY = "a smaller gpu_memory, max_batch_prompts or max_batch_tokens, or nothing else on the GPU"
FAILURES = (RuntimeError, ValueError)  # its RequestError is a RuntimeError


class TensorRTReasoner:
    """A loaded TensorRT-LLM engine; see :meth:`from_pretrained`.

    Args:
        llm: ``tensorrt_llm.LLM`` that runs the class of latent_model.py.
        sampling: parameters that ask for one token and the additional output; None with ``encode``.
        max_batch_prompts, max_batch_tokens: what the engine was given; ``encode`` refuses more in a call.
    """

    def __init__(
        self,
        llm: Any,
        *,
        api: Api,
        sampling: Any,
        tokenizer: Any,
        hidden_size: int,
        vocabulary: int,
        max_tokens: int,
        max_batch_prompts: int,
        max_batch_tokens: int,
        provenance: dict[str, str],
    ) -> None:
        self.llm = llm
        self.api = api
        self.sampling = sampling
        self.tokenizer = tokenizer
        self.hidden_size = hidden_size
        self.vocabulary = vocabulary
        self.max_tokens = max_tokens
        self.max_batch_prompts = max_batch_prompts
        self.max_batch_tokens = max_batch_tokens
        self.provenance = provenance
        self._prefix: tuple[int, ...] = ()

    @classmethod
    def from_pretrained(
        cls,
        ref: str,
        *,
        dtype: TensorRTDtype = "bf16",
        api: Api | Literal["auto"] = "auto",
        max_tokens: int = 512,
        max_batch_prompts: int = 64,
        max_batch_tokens: int = 8192,
        gpu_memory: float = 0.9,
    ) -> TensorRTReasoner:
        """Starts TensorRT-LLM on a Qwen3 model.

        Args:
            ref: as in :mod:`rgalign.reasoner.pretrained`; for ``int8`` a directory that ``rgalign engine build --for
                tensorrt-llm`` wrote, for ``fp8`` one that ModelOpt exported.
            api: ``generate`` reuses the prefix's blocks but runs scheduler and sampler; ``encode`` does neither;
                ``auto`` takes ``encode`` where it is.
            max_tokens: of a whole prompt, prefix included.
            gpu_memory: share of the GPU's free memory for keys and values.

        Raises:
            EngineUnavailableError: no TensorRT-LLM, or another version.
            ConfigError: another architecture, a checkpoint that does not fit ``dtype`` or that it would misread,
                ``encode`` where there is none, workers in another process.
            EngineError: TensorRT-LLM did not start.
        """
        # Read once, when the package first asks: workers in other processes would not know our class.
        if os.environ.setdefault(SINGLE_PROCESS, "1") != "1":
            raise ConfigError(where=SINGLE_PROCESS, required="1 or not set", received=repr(os.environ[SINGLE_PROCESS]))
        package, version = load_package("tensorrt_llm", least=(1, 1), below=(2, 0), install=INSTALL)
        served = served_checkpoint(ref)
        _check_checkpoint(ref, served, dtype)
        has_encode = hasattr(package.LLM, "encode")
        if api == "encode" and not has_encode:
            raise ConfigError(where="api encode", required="tensorrt_llm with LLM.encode (1.3)", received=version)
        if max_batch_tokens < max_tokens:
            required = f"at least max_tokens ({max_tokens}): prompts are not split"
            raise ConfigError(where="max_batch_tokens", required=required, received=str(max_batch_tokens))
        chosen: Api = "encode" if api == "encode" or (api == "auto" and has_encode) else "generate"
        register_latent_model(encode=chosen == "encode")
        where = f"tensorrt_llm {version}"
        with _failing_as_ours(where):
            llm = package.LLM(
                model=str(served.directory),
                backend="pytorch",
                skip_tokenizer_init=True,
                trust_remote_code=False,
                dtype=TORCH_DTYPES[dtype],
                max_batch_size=max_batch_prompts,
                max_num_tokens=max_batch_tokens,
                max_seq_len=max_tokens + 1,  # the token that nobody reads
                disable_overlap_scheduler=True,
                **_cache_arguments(chosen, gpu_memory),
            )
            sampling = _sampling(version) if chosen == "generate" else None
        return cls(
            llm,
            api=chosen,
            sampling=sampling,
            tokenizer=load_tokenizer(ref),
            hidden_size=served.hidden_size,
            vocabulary=served.vocabulary,
            max_tokens=max_tokens,
            max_batch_prompts=max_batch_prompts,
            max_batch_tokens=max_batch_tokens,
            provenance={
                "model": model_fingerprint(str(served.directory)),
                "pooling": "ltp",
                "dtype": dtype,
                "engine": where,
            },
        )

    @property
    def hash(self) -> str:
        return sha256_json(self.provenance)

    def embed(
        self,
        token_ids: Sequence[TokenIds],
        *,
        prefix_ids: Sequence[int] = (),
        on_prompts: Callable[[int], None] = lambda count: None,
    ) -> Tensor:
        """[B, D] float32, as :meth:`rgalign.reasoner.protocol.Reasoner.embed`.

        Raises:
            DataError: unusable prompts.
            EngineError: a request that failed, or an answer that is no state.
        """
        where = "TensorRTReasoner.embed"
        prompts = whole_prompts(
            token_ids, prefix_ids, vocabulary=self.vocabulary, max_tokens=self.max_tokens, where=where
        )
        prefix = tuple(int(token) for token in prefix_ids)
        if self.api == "generate" and prefix and prefix != self._prefix:
            self._states([list(prefix)])  # blocks can be reused once the request that computed them has ended
            self._prefix = prefix
        parts = []
        for batch in self._batches(prompts):
            parts.append(self._states(batch))
            on_prompts(len(batch))
        return cat(parts)

    def _batches(self, prompts: list[list[int]]) -> Iterator[list[list[int]]]:
        batch: list[list[int]] = []
        tokens = 0
        for prompt in prompts:
            if batch and (len(batch) == self.max_batch_prompts or tokens + len(prompt) > self.max_batch_tokens):
                yield batch
                batch, tokens = [], 0
            batch.append(prompt)
            tokens += len(prompt)
        yield batch

    def _states(self, prompts: list[list[int]]) -> Tensor:
        where = self.provenance["engine"]
        with _failing_as_ours(where):
            if self.api == "encode":
                answers = self.llm.encode(prompts, add_special_tokens=False)
            else:
                answers = self.llm.generate(prompts, sampling_params=self.sampling, use_tqdm=False)
        states = [answer.logits if self.api == "encode" else _additional(answer, where) for answer in answers]
        return stacked_states(states, len(prompts), self.hidden_size, where)


def _additional(answer: Any, where: str) -> Any:
    """[1, 1, D] of one request."""
    outputs = getattr(answer.outputs[0], "additional_generation_outputs", None) or {}
    if OUTPUT not in outputs:
        required = f"additional output {OUTPUT!r} (the out-of-tree class; {SINGLE_PROCESS}=1)"
        raise EngineError(where=where, required=required, received=", ".join(sorted(outputs)) or "none")
    return outputs[OUTPUT]


def _check_checkpoint(ref: str, served: Served, dtype: str) -> None:
    where = f"model {ref!r}"
    architectures = served.config.get("architectures") or []
    if ARCHITECTURE not in architectures:
        raise ConfigError(where=where, required=ARCHITECTURE, received=", ".join(architectures) or "none")
    if served.quantization != QUANTIZATION[dtype]:
        required = {
            "int8": "a W8A16 checkpoint (`rgalign engine build MODEL --for tensorrt-llm -o DIR`)",
            "fp8": "an FP8 checkpoint of ModelOpt (hf_quant_config.json)",
        }.get(dtype, f"plain weights for {dtype}")
        raise ConfigError(where=where, required=required, received=served.quantization or "plain weights")
    # 1.2 reads with transformers 4.57, which does not know transformers 5's rope_parameters and would silently take
    # theta = 10000.
    if "rope_parameters" in served.config and "rope_theta" not in served.config:
        required = "rope_theta in config.json (`rgalign engine build MODEL --for tensorrt-llm --dtype bf16 -o DIR`)"
        raise ConfigError(where=where, required=required, received="rope_parameters of transformers 5 only")


def _cache_arguments(api: Api, gpu_memory: float) -> dict[str, Any]:
    if api == "encode":
        return {"encode_only": True}
    from tensorrt_llm.llmapi import KvCacheConfig

    cache = KvCacheConfig(enable_block_reuse=True, free_gpu_memory_fraction=gpu_memory, tokens_per_block=32)
    return {"kv_cache_config": cache, "cuda_graph_config": None}  # its graphs are for decoding


def _sampling(version: str) -> Any:
    """One greedy token and the additional output: a list of names, until 1.1 a list of objects."""
    from tensorrt_llm import SamplingParams

    outputs: list[Any] = [OUTPUT]
    if tuple(map(int, version.split(".")[:2])) < (1, 2):
        from tensorrt_llm.sampling_params import AdditionalModelOutput

        outputs = [AdditionalModelOutput(name=OUTPUT, gather_context=False)]
    return SamplingParams(max_tokens=1, temperature=0.0, end_id=-1, detokenize=False, additional_model_outputs=outputs)


@contextmanager
def _failing_as_ours(where: str) -> Iterator[None]:
    try:
        yield
    except FAILURES as error:
        raise engine_failure(error, where, MEMORY) from error
