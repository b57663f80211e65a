"""What the CPU engine is measured against: prompts to last states in transformers, ONNX Runtime and OpenVINO.

Each peer computes what it is given best: an ONNX graph of whole operators (engine_graph.py), the prefix's keys and
values as inputs wherever it can take them, padding behind the last token, and groups of prompts of the size that it is
fastest with. A peer that is not installed is left out (`--peers DIR` makes an environment that has them).

CTranslate2 has no place here: its decoders return logits, never states, and only generation reuses a prefix
(Generator.forward_batch in 4.8.5; OpenNMT/CTranslate2 issues 1217 and 1392).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rgalign.bench.engine_graph import past_names, write_graph
from rgalign.bench.engine_prompts import Workload
from rgalign.files import atomic_path
from rgalign.reasoner.prefix_tree import TokenIds

Matrix = NDArray[np.float32]
Integers = NDArray[np.int64]
Forward = Callable[[Integers, Integers], Matrix]  # padded ids [B, T] and place of each last token [B] -> states [B, D]
GROUPS = (1, 4, 16)
CALIBRATION_PROMPTS = 8
INSTALLED = {"openvino": "openvino", "onnxruntime": "onnxruntime", "nncf": "nncf", "onnx": "onnx"}


@dataclass(frozen=True)
class Variant:
    """One way from prompts (without their prefix) to states after the final norm, [B, D].

    Args:
        embed: the way.
        dtype: of the products.
        least_cosine: to transformers in float32, below which it is not timed.
        reuses_prefix: whether the prefix's keys and values were there.
        pruned: whether the last layer is.
        forward: of a peer that takes padded batches; ``embed`` is then made of it.
        group: how many prompts it then computes together, at most.
    """

    embed: Callable[[Sequence[TokenIds]], Matrix]
    dtype: str
    least_cosine: float
    reuses_prefix: bool = True
    pruned: bool = False
    forward: Forward | None = None
    group: int | None = None


def versions() -> dict[str, str]:
    """Of transformers and the peers that are installed."""
    names = {"transformers": "transformers", **INSTALLED}
    return {name: importlib.metadata.version(name) for name, module in names.items() if installed(module)}


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


# ---- padded groups ---------------------------------------------------------------------------------------------------


def padded(forward: Forward, dtype: str, least_cosine: float, group: int = 1, *, reuses_prefix: bool = True) -> Variant:
    """A peer's variant that computes prompts of about one length together, ``group`` at a time."""

    def embed(prompts: Sequence[TokenIds]) -> Matrix:
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        parts = [order[at : at + group] for at in range(0, len(order), group)]
        found = [forward(*pad([prompts[row] for row in part])) for part in parts]
        states = np.empty((len(prompts), found[0].shape[1]), np.float32)
        states[order] = np.concatenate(found)
        return states

    return Variant(embed, dtype, least_cosine, reuses_prefix, forward=forward, group=group)


def pad(prompts: Sequence[TokenIds]) -> tuple[Integers, Integers]:
    """Rows [B, T] with zeros behind their tokens, and where the last token of each stands [B]."""
    lengths = np.array([len(ids) for ids in prompts], np.int64)
    rows = np.zeros((len(prompts), lengths.max()), np.int64)
    for row, ids in zip(rows, prompts, strict=True):
        row[: len(ids)] = ids
    return rows, lengths - 1


def with_fastest_group(variant: Variant, batch: Sequence[TokenIds]) -> Variant:
    """A peer with the group size, of those in ``GROUPS``, that it computes this batch fastest with."""
    if variant.forward is None or len(batch) == 1:
        return variant
    choices = [regrouped(variant, group) for group in GROUPS if group <= len(batch)]

    def seconds(choice: Variant) -> float:
        began = time.perf_counter()
        choice.embed(batch)
        return time.perf_counter() - began

    return min(choices, key=seconds)


def regrouped(variant: Variant, group: int) -> Variant:
    if variant.forward is None:
        return variant
    made = padded(variant.forward, variant.dtype, variant.least_cosine, group, reuses_prefix=variant.reuses_prefix)
    return replace(variant, embed=made.embed, group=group)


# ---- transformers ----------------------------------------------------------------------------------------------------


def with_transformers(model: Any, workload: Workload) -> Iterator[tuple[str, Variant]]:
    """Eager float32 with the whole prompt, and with the prefix in a cache."""
    decoder = model.get_decoder()
    prefix = torch.tensor(workload.prefix_ids)
    cached = prefix_keys_values(model, workload)

    @torch.inference_mode()
    def whole(ids: Integers, last: Integers) -> Matrix:
        rows = torch.cat([prefix.expand(len(ids), -1), torch.from_numpy(ids)], dim=1)
        states = decoder(input_ids=rows, use_cache=False).last_hidden_state
        found: Matrix = states[torch.arange(len(ids)), torch.from_numpy(last) + len(prefix)].numpy()
        return found

    @torch.inference_mode()
    def behind_prefix(ids: Integers, last: Integers) -> Matrix:
        from transformers import DynamicCache

        cache = DynamicCache(config=model.config)
        for index in range(model.config.num_hidden_layers):
            keys, values = (tensor.expand(len(ids), -1, -1, -1) for tensor in cached[2 * index : 2 * index + 2])
            cache.update(keys, values, index)
        output = decoder(input_ids=torch.from_numpy(ids), past_key_values=cache, use_cache=True)
        found: Matrix = output.last_hidden_state[torch.arange(len(ids)), torch.from_numpy(last)].numpy()
        return found

    yield "transformers fp32, whole prompt", padded(whole, "fp32", 0.99999, reuses_prefix=False)
    yield "transformers fp32", padded(behind_prefix, "fp32", 0.99999)
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():  # faster than fp32 where there are AMX tiles, slower elsewhere

        def under_autocast(ids: Integers, last: Integers) -> Matrix:
            with torch.autocast("cpu", torch.bfloat16):
                return behind_prefix(ids, last)

        yield "transformers bf16", padded(under_autocast, "bf16", 0.99)


@torch.inference_mode()
def prefix_keys_values(model: Any, workload: Workload) -> list[torch.Tensor]:
    """Keys and values of layer 0, of layer 1, ...: each [1, KV heads, P, head_dim]."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    model.get_decoder()(input_ids=torch.tensor([workload.prefix_ids]), past_key_values=cache, use_cache=True)
    layers: list[Any] = list(cache.layers)  # of a kind that has keys and values: the model attends to all
    return [tensor.clone() for layer in layers for tensor in (layer.keys, layer.values)]


# ---- runtimes --------------------------------------------------------------------------------------------------------


class Inputs:
    """The graph's inputs of a padded batch behind one prefix."""

    def __init__(self, model: Any, workload: Workload) -> None:
        self.names = ["ids", "positions", "last", *past_names(model.config)]
        self._prefix_length = workload.prefix_length
        self._past = [tensor.numpy() for tensor in prefix_keys_values(model, workload)]
        self._repeated: dict[int, list[Matrix]] = {}  # the prefix, as often as a batch has rows

    def of(self, ids: Integers, last: Integers) -> list[NDArray[Any]]:
        size, length = ids.shape
        if size not in self._repeated:
            self._repeated[size] = [np.repeat(values, size, axis=0) for values in self._past]
        positions = np.tile(np.arange(self._prefix_length, self._prefix_length + length), (size, 1))
        return [ids, positions, last[:, None], *self._repeated[size]]


class Graphs:
    """The graph and its 8-bit forms, written once to a directory."""

    def __init__(self, model: Any, directory: Path) -> None:
        self._model = model
        self._directory = directory

    def fp32(self) -> Path:
        path = self._directory / "graph.onnx"
        if not path.is_file():
            write_graph(self._model, path)
        return path

    def onnxruntime_int8(self) -> Path:
        """Dynamic W8A8: a scale a channel; 7-bit weights, for without VNNI the sum of two products saturates."""
        from onnxruntime.quantization import QuantType, quantize_dynamic

        path = self._directory / "onnxruntime-int8.onnx"
        if not path.is_file():
            with atomic_path(path) as temporary:
                quantize_dynamic(self.fp32(), temporary, op_types_to_quantize=["MatMul"], per_channel=True,
                                 reduce_range=True, weight_type=QuantType.QInt8)  # fmt: skip
        return path

    def openvino_int8_weights(self) -> Path:
        import nncf

        return self._openvino(
            "openvino-int8-weights", lambda model: nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
        )

    def openvino_int8(self, inputs: Inputs, workload: Workload) -> Path:
        """W8A8 of NNCF with SmoothQuant, calibrated on a few of the prompts."""
        import nncf

        rows = [inputs.of(*pad([ids])) for ids in workload.token_ids[:CALIBRATION_PROMPTS]]
        data = nncf.Dataset([dict(zip(inputs.names, row, strict=True)) for row in rows])
        return self._openvino(
            "openvino-int8",
            lambda model: nncf.quantize(
                model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=CALIBRATION_PROMPTS
            ),
        )

    def _openvino(self, name: str, quantize: Callable[[Any], Any]) -> Path:
        import openvino

        done, fp32 = self._directory / f"{name}.xml", self._directory / "openvino-fp32.xml"
        if not fp32.is_file():  # NNCF quantises OpenVINO's own format only
            openvino.save_model(openvino.Core().read_model(self.fp32()), fp32, compress_to_fp16=False)
        if not done.is_file():
            writing = self._directory / f"writing-{name}.xml"
            openvino.save_model(quantize(openvino.Core().read_model(fp32)), writing, compress_to_fp16=False)
            writing.with_suffix(".bin").replace(done.with_suffix(".bin"))
            writing.replace(done)
        return done


def with_onnxruntime(path: Path, inputs: Inputs, threads: int) -> Forward:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Its threads spin while it works and not behind its back, while others are timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def forward(ids: Integers, last: Integers) -> Matrix:
        states: Matrix = session.run(["states"], dict(zip(inputs.names, inputs.of(ids, last), strict=True)))[0]
        return states

    return forward


def with_openvino(path: Path, inputs: Inputs, threads: int, precision: str = "f32") -> Forward:
    """Args: precision: of what is not 8 bits: f32, or bf16, which it takes by itself where the CPU multiplies it."""
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
               "INFERENCE_PRECISION_HINT": precision, "ENABLE_CPU_PINNING": False}  # fmt: skip
    core = openvino.Core()
    request = core.compile_model(core.read_model(path), "CPU", options).create_infer_request()

    def forward(ids: Integers, last: Integers) -> Matrix:
        values = dict(zip(inputs.names, inputs.of(ids, last), strict=True))
        states: Matrix = request.infer(values, share_inputs=True)["states"].copy()
        return states

    return forward


def with_runtimes(
    model: Any, workload: Workload, threads: int, directory: Path, *, calibrated: bool
) -> Iterator[tuple[str, Variant]]:
    """ONNX Runtime and OpenVINO, float32 and 8 bits, where they are installed; OpenVINO's bf16 where the CPU has it.

    Args:
        directory: where their files are kept.
        calibrated: also OpenVINO's W8A8, whose calibration takes some minutes the first time.
    """
    if not installed("onnx"):
        return
    graphs, inputs = Graphs(model, directory), Inputs(model, workload)
    if installed("onnxruntime"):
        yield "onnxruntime fp32", padded(with_onnxruntime(graphs.fp32(), inputs, threads), "fp32", 0.99999)
        path = graphs.onnxruntime_int8()
        yield "onnxruntime int8", padded(with_onnxruntime(path, inputs, threads), "int8", 0.95)
    if not installed("openvino"):
        return
    found = [("fp32", graphs.fp32(), 0.99999)]
    if installed("nncf"):
        found.append(("int8 weights", graphs.openvino_int8_weights(), 0.99))
        if calibrated:
            found.append(("int8", graphs.openvino_int8(inputs, workload), 0.95))
    for dtype, path, least in found:
        yield f"openvino {dtype}", padded(with_openvino(path, inputs, threads), dtype, least)
    if not multiplies_bf16():
        return
    for dtype, path, least in found:
        name = "bf16" if dtype == "fp32" else f"{dtype} bf16"
        yield f"openvino {name}", padded(with_openvino(path, inputs, threads, "bf16"), name, min(least, 0.99))


def multiplies_bf16() -> bool:
    """Whether OpenVINO would choose bf16 here."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
