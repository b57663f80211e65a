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

from rgalign.reasoner.prefix_tree import TokenIds


@torch.inference_mode()
def continued(
    model: Any, pad: int, prompts: Sequence[TokenIds], prefix_ids: Sequence[int] = (), **options: Any
) -> Tensor:
    """What the model writes behind each prompt, greedily.

    Args:
        model: a transformers causal LM in evaluation mode.
        pad: token id of the padding, also behind a continuation that ended.
        prompts: B non-empty arrays, each what follows ``prefix_ids``.
        options: of transformers' ``generate``, ``max_new_tokens`` at least.

    Returns:
        [B, N] token ids of the longest continuation's width.
    """
    from transformers import DynamicCache

    prefix, width = len(prefix_ids), max(map(len, prompts))
    ids = torch.full((len(prompts), prefix + width), pad)
    mask = torch.zeros_like(ids)
    ids[:, :prefix], mask[:, :prefix] = torch.tensor(prefix_ids, dtype=ids.dtype), 1
    for row, prompt in enumerate(prompts):
        ids[row, -len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask[row, -len(prompt) :] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    if prefix:
        cache = DynamicCache(config=model.config)
        model.get_decoder()(input_ids=ids[:1, :prefix], past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(prompts))
        options["past_key_values"] = cache
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(_contiguous)
    try:
        written: Tensor = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, pad_token_id=pad, **options
        )
    finally:
        hook.remove()
    return written[:, ids.shape[1] :]


def _contiguous(head: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The head's input is a slice of all states, for which torch on a CPU copies the head's weight once a row."""
    return tuple(each.contiguous() for each in args)


def padding_of(tokenizer: Any) -> int:
    """The tokenizer's padding token, or its end of sequence."""
    found: int = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return found
