"""Decoding: a causal LM continues prompts that begin with the same prefix, in padded batches.

    prefix | padding, which the mask hides | prompt | continuation

Keys and values of the prefix are computed once for all rows of a batch. The padding stands left of the prompts, so
that all of them are continued at their last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rgalign.chat_format import turn_ends
from rgalign.reasoner.hf import attends_to_all
from rgalign.reasoner.prefix_tree import TokenIds

# What a checkpoint's own generation settings may add to its logits; some count words of the prompt, or the padding.
NO_PENALTIES = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}


@torch.inference_mode()
def continued(
    model: Any, tokenizer: Any, prompts: Sequence[TokenIds], prefix_ids: Sequence[int] = (), **options: Any
) -> Tensor:
    """What the model writes behind each prompt, greedily, up to an end of turn or of sequence.

    Args:
        model: a transformers causal LM in evaluation mode.
        prompts: B non-empty arrays, each what follows ``prefix_ids``.
        options: of transformers' ``generate``, ``max_new_tokens`` at least.

    Returns:
        [B, N] token ids of the longest continuation's width; :func:`padding_of` behind one that ended.
    """
    cache = _shared_prefix(model, prefix_ids, len(prompts))
    if cache is None:
        prompts, prefix_ids = [np.concatenate([np.array(prefix_ids, np.int32), ids]) for ids in prompts], ()
    prefix, pad = len(prefix_ids), padding_of(tokenizer)
    ids = torch.full((len(prompts), prefix + max(map(len, prompts))), pad)
    mask = torch.zeros_like(ids)
    ids[:, :prefix], mask[:, :prefix] = torch.tensor(prefix_ids, dtype=ids.dtype), 1
    for row, prompt in enumerate(prompts):
        ids[row, -len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask[row, -len(prompt) :] = 1
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(_contiguous)
    try:
        written: Tensor = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            past_key_values=cache,
            do_sample=False,
            pad_token_id=pad,
            eos_token_id=_ends(model, tokenizer) or None,
            tokenizer=tokenizer,
            **NO_PENALTIES,
            **options,
        )
    finally:
        hook.remove()
    return written[:, ids.shape[1] :]


def padding_of(tokenizer: Any) -> int:
    """The tokenizer's padding token, or its end of sequence."""
    found: int = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return found


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """The tokenizer's ends of turn and of sequence, and those that the checkpoint names."""
    own = model.generation_config.eos_token_id
    named = [own] if isinstance(own, int) else own or []
    return sorted({*turn_ends(tokenizer), *named})


def _shared_prefix(model: Any, prefix_ids: Sequence[int], count: int) -> Any:
    """The prefix's keys and values for ``count`` rows, or None: a window would count the padding."""
    from transformers import DynamicCache

    if not prefix_ids or not attends_to_all(model):
        return None
    cache = DynamicCache(config=model.config)
    row = torch.tensor([prefix_ids], device=model.device)
    model.get_decoder()(input_ids=row, past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(count)
    return cache


def _contiguous(head: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The head's input is a slice of all states, for which torch on a CPU copies the head's weight once a row."""
    return tuple(each.contiguous() for each in args)
