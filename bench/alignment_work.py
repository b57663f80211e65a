"""How many sessions a second RG-SFT aligns on a CPU: forward and backward pass of the trained upper layers.

    python -m rgalign.bench.alignment_work [--rows 8 24]    rows: bench/results/alignment.jsonl

Layers of SmolLM2-135M's shapes with random weights, prompts as Boston's are: 111 tokens that all begin with, up to 280
in all, then a query. Variants have the same weights and are compared before they are timed, in turn:

    TRL          transformers' SDPA and TRL's fused LM head
    shared       the common beginning once, the head at supervised positions alone
    rgalign      and attention as grouped bf16 products, a plain product for the frozen head
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.utils import add_fused_lm_head

from rgalign.bench.rows import RESULTS, append, hardware, in_turn, row, spread
from rgalign.training.alignment.batches import CompletionBatch, completion_rows
from rgalign.training.alignment.frozen_head import frozen_head
from rgalign.training.alignment.grouped_attention import group_queries
from rgalign.training.alignment.shared_prefix import share_prefix
from rgalign.training.alignment.supervised_positions import supervised_positions_only
from rgalign.training.alignment.tokenised import TokenisedPreference

SHARED_TOKENS, LONGEST, QUERY_TOKENS = 111, 280, (12, 25)
FIELDS = ("log_probs", "entropy", "is_top1")  # what TRL's trainer asks of its head
TRL, SHARED, RGALIGN = "TRL", "shared", "rgalign"
FURTHEST = {"float32": 1e-4, "bfloat16": 0.05}  # of gradients, relative to the norm of TRL's

console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, nargs="+", default=(8, 24), help="sessions in a micro-batch")
    parser.add_argument("--layers", type=int, default=6, help="that train")
    parser.add_argument("--vocabulary", type=int, default=49_152)
    parser.add_argument("--dtype", choices=FURTHEST, help="bfloat16 where the CPU has AMX, float32 elsewhere")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", default="alignment.jsonl", help=f"file in {RESULTS}, or an absolute path")
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    dtype = arguments.dtype or ("bfloat16" if hardware()["instructions"] == "amx_int8" else "float32")
    for count in arguments.rows:
        rows = measure(count, arguments.layers, arguments.vocabulary, dtype, arguments.repeats)
        for each in rows:
            console.print(f"{count} rows, {dtype}, {each['variant']}:", each["sessions_per_s"])
        console.print(f"appended to {append(arguments.out, rows)}")


def measure(count: int, layers: int, vocabulary: int, dtype: str, repeats: int) -> list[dict[str, Any]]:
    batch = micro_batch(count, vocabulary)
    steps = {name: step(name, batch, layers, vocabulary, dtype) for name in (TRL, SHARED, RGALIGN)}
    gradients = {name: call() for name, call in steps.items()}
    for name, gradient in gradients.items():
        off = float((gradient - gradients[TRL]).norm() / gradients[TRL].norm())
        if not off <= FURTHEST[dtype]:
            raise AssertionError(f"{name}: gradients {off:.2g} from TRL's, at most {FURTHEST[dtype]} allowed")
    tokens = int(batch["attention_mask"].sum())
    return [
        row(
            "alignment step", variant=name, rows=count, tokens=tokens, layers=layers, dtype=dtype, weights="random",
            threads=torch.get_num_threads(), repeats=repeats, call_ms=spread([each * 1e3 for each in seconds], 1),
            sessions_per_s=spread([count / each for each in seconds], 2),
        )
        for name, seconds in in_turn(steps, repeats).items()
    ]  # fmt: skip


def micro_batch(count: int, vocabulary: int) -> dict[str, Tensor]:
    generator = np.random.default_rng(0)

    def tokens(number: int) -> list[int]:
        return [int(each) for each in generator.integers(3, vocabulary, number)]

    prefix = tokens(SHARED_TOKENS)
    sessions = [
        TokenisedPreference(
            row=place,
            prompt=prefix + tokens(int(generator.integers(20, LONGEST - SHARED_TOKENS))),
            chosen=tokens(int(generator.integers(*QUERY_TOKENS))),
            rejected=[],
        )
        for place in range(count)
    ]
    batch = CompletionBatch(0)(completion_rows(sessions))
    return {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}


def step(variant: str, batch: dict[str, Tensor], layers: int, vocabulary: int, dtype: str) -> Callable[[], Tensor]:
    """A call that computes loss and gradients, and returns these in one row."""
    model = reasoner(layers, vocabulary)
    if variant != TRL:
        share_prefix(model.get_decoder())
    if variant == RGALIGN and dtype == "bfloat16":
        group_queries(model)
    add_fused_lm_head(model, outputs=FIELDS)
    trained = [value for value in model.parameters() if value.requires_grad]

    def call() -> Tensor:
        supervised = supervised_positions_only() if variant != TRL else nullcontext()
        plain = frozen_head() if variant == RGALIGN else nullcontext()
        with supervised, plain, torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(**batch, fused_lm_head=True).loss
        loss.backward()
        gradients = torch.cat([value.grad.flatten() for value in trained if value.grad is not None])
        model.zero_grad()
        return gradients

    return call


def reasoner(layers: int, vocabulary: int) -> Any:
    """The trained part: frozen embeddings in the lower states' place, layers, norm, frozen LM head."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
    )
    model: Any = LlamaForCausalLM(config)
    model.get_input_embeddings().requires_grad_(False)
    model.get_output_embeddings().requires_grad_(False)
    return model.train()


if __name__ == "__main__":
    main()
