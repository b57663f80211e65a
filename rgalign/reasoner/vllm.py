"""vLLM as a reasoner: its pooling runner, the last token's state without normalisation, prompts by token ids.

Signatures and names as in vLLM 0.33.0 (entrypoints/llm.py, entrypoints/pooling/offline.py, config/pooler.py). What has
not been run, and how to run it: docs/vllm.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, cat

from rgalign.errors import ConfigError
from rgalign.files import sha256_json
from rgalign.reasoner.adapter import (
    EngineError,
    engine_failure,
    load_package,
    served_checkpoint,
    stacked_states,
    whole_prompts,
)
from rgalign.reasoner.prefix_tree import TokenIds
from rgalign.reasoner.pretrained import load_tokenizer, model_fingerprint

VllmDtype = Literal["bf16", "fp16", "fp32", "int8", "fp8"]
TORCH_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "int8": "bfloat16", "fp8": "bfloat16"}
INSTALL = "pip install 'rgalign[vllm]'"
REQUESTS = 256  # of one call, between two reports of progress
MEMORY = "a smaller gpu_memory, max_tokens or max_batch_tokens, or nothing else on the GPU"


class VllmReasoner:
    """A loaded vLLM engine; see :meth:`from_pretrained`.

    Args:
        llm: ``vllm.LLM`` of the pooling runner, task "embed", pooling LAST, ``use_activation=False``.
        failures: what the engine raises when it cannot answer.
        max_tokens: of a whole prompt.
    """

    def __init__(
        self,
        llm: Any,
        *,
        tokenizer: Any,
        hidden_size: int,
        vocabulary: int,
        max_tokens: int,
        provenance: dict[str, str],
        failures: tuple[type[BaseException], ...] = (RuntimeError, ValueError),
    ) -> None:
        self.llm = llm
        self.tokenizer = tokenizer
        self.hidden_size = hidden_size
        self.vocabulary = vocabulary
        self.max_tokens = max_tokens
        self.provenance = provenance
        self._failures = failures
        self._prefix: tuple[int, ...] = ()

    @classmethod
    def from_pretrained(
        cls,
        ref: str,
        *,
        dtype: VllmDtype = "bf16",
        max_tokens: int = 512,
        max_batch_tokens: int = 8192,
        gpu_memory: float = 0.9,
    ) -> VllmReasoner:
        """Starts vLLM on a model.

        Args:
            ref: as in :mod:`rgalign.reasoner.pretrained`; for ``int8`` a directory that ``rgalign engine build --for
                vllm`` wrote.
            dtype: ``int8`` is W8A8 from the checkpoint, ``fp8`` quantises while loading (Ada, Hopper, Blackwell).
            max_tokens: of a whole prompt, prefix included.
            max_batch_tokens: of one step; a prompt is never split over two.
            gpu_memory: share of the GPU's memory that vLLM may take.

        Raises:
            EngineUnavailableError: no vLLM, or another version.
            ConfigError: a checkpoint that does not fit ``dtype``.
            EngineError: vLLM did not start.
        """
        vllm, version = load_package("vllm", least=(0, 33), below=(0, 34), install=INSTALL)
        from vllm.config import PoolerConfig
        from vllm.exceptions import VLLMError

        served = served_checkpoint(ref)
        packed = served.quantization == "compressed-tensors"
        if packed != (dtype == "int8") or (served.quantization and not packed):
            required = (
                "a compressed-tensors checkpoint (`rgalign engine build MODEL --for vllm -o DIR`)"
                if dtype == "int8"
                else f"plain weights for {dtype}"
            )
            raise ConfigError(
                where=f"model {ref!r}", required=required, received=served.quantization or "plain weights"
            )
        if max_batch_tokens < max_tokens:  # chunked prefill of pooling requests: vllm issue 48214
            required = f"at least max_tokens ({max_tokens}): prompts are not split"
            raise ConfigError(where="max_batch_tokens", required=required, received=str(max_batch_tokens))
        failures = (RuntimeError, ValueError, VLLMError)
        with _failing_as_ours(failures, f"vllm {version}"):
            llm = vllm.LLM(
                model=str(served.directory),
                runner="pooling",
                convert="embed",
                skip_tokenizer_init=True,
                trust_remote_code=False,
                dtype=TORCH_DTYPES[dtype],
                quantization="fp8" if dtype == "fp8" else None,
                gpu_memory_utilization=gpu_memory,
                pooler_config=PoolerConfig(task="embed", seq_pooling_type="LAST", use_activation=False),
                # Graphs stop at 512 tokens by default, so two prompts at once would run without one.
                compilation_config={"max_cudagraph_capture_size": min(2048, max_batch_tokens)},
                max_model_len=max_tokens,
                max_num_batched_tokens=max_batch_tokens,
                enable_prefix_caching=True,
                seed=0,
            )
        return cls(
            llm,
            tokenizer=load_tokenizer(ref),
            hidden_size=served.hidden_size,
            vocabulary=served.vocabulary,
            max_tokens=max_tokens,
            provenance={
                "model": model_fingerprint(str(served.directory)),
                "pooling": "ltp",
                "dtype": dtype,
                "engine": f"vllm {version}",
            },
            failures=failures,
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
        prompts = whole_prompts(
            token_ids, prefix_ids, vocabulary=self.vocabulary, max_tokens=self.max_tokens, where="VllmReasoner.embed"
        )
        prefix = tuple(int(token) for token in prefix_ids)
        if prefix and prefix != self._prefix:
            self._encode([list(prefix)])  # its blocks are in the cache from here on
            self._prefix = prefix
        parts = []
        for start in range(0, len(prompts), REQUESTS):
            parts.append(self._encode(prompts[start : start + REQUESTS]))
            on_prompts(len(parts[-1]))
        return cat(parts)

    def _encode(self, prompts: list[list[int]]) -> Tensor:
        requests = [{"prompt_token_ids": prompt} for prompt in prompts]
        where = self.provenance["engine"]
        with _failing_as_ours(self._failures, where):
            answers = self.llm.encode(requests, pooling_task="embed", use_tqdm=False)
        for index, answer in enumerate(answers):
            if getattr(answer, "error", None) is not None:
                received = str(answer.error)
                raise EngineError(where=f"{where}, prompt {index}", required="an answer", received=received)
        return stacked_states([answer.outputs.data for answer in answers], len(prompts), self.hidden_size, where)


@contextmanager
def _failing_as_ours(failures: tuple[type[BaseException], ...], where: str) -> Iterator[None]:
    try:
        yield
    except failures as error:
        raise engine_failure(error, where, MEMORY) from error
