"""The real model: the float32 engine is the definition at every length, whatever is cached or computed beside it.

A few lengths here, up to 256 tokens; `make soak` asks for 1 to 512 in steps of seven.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from rgalign.bench.soak import WHOLE, summarise
from rgalign.errors import ModelNotFoundError
from rgalign.reasoner.engine.build import build_engine
from rgalign.reasoner.engine.reasoner import load_engine
from rgalign.reasoner.hf import HFReasoner
from rgalign.reasoner.pretrained import resolve_model

PREFIX = 108  # tokens before the slots in the paper's template
LENGTHS = [*list(range(1, 512 - PREFIX, 7)), 512 - PREFIX] if WHOLE else [1, 17, 52, 148]  # after them
ALONE = [*list(range(1, 512, 7)), 512] if WHOLE else [1, 6]  # of prompts without a prefix
NEAR = 0.99999


def test_smollm2_is_the_same_model_at_every_length(tmp_path: Path) -> None:
    try:
        resolve_model("smollm2")
    except ModelNotFoundError as error:
        pytest.skip(str(error))
    rng = np.random.default_rng(0)
    prefix, *rows = (rng.integers(3, 49_000, size).astype(np.int32) for size in (PREFIX, *LENGTHS, *ALONE))
    own, alone = rows[: len(LENGTHS)], rows[len(LENGTHS) :]
    hf = HFReasoner.from_pretrained("smollm2")
    behind, bare = hf.embed(own, prefix_ids=prefix.tolist()), hf.embed(alone)
    states = torch.nn.functional.normalize(torch.cat([behind, bare]))
    assert (states @ states.T).fill_diagonal_(0).max() < 0.999  # of different prompts: far from the limit

    build_engine("smollm2", tmp_path / "e", "fp32")
    engine = load_engine(tmp_path / "e", 2)
    cached = engine.embed(own, prefix_ids=prefix.tolist())
    assert near(cached, behind)
    mixed = [np.concatenate([prefix, ids]) for ids in own] + alone
    order = rng.permutation(len(mixed))
    uncached = torch.empty(len(mixed), cached.shape[1])
    uncached[torch.from_numpy(order)] = engine.embed([mixed[row] for row in order])
    assert near(uncached[len(own) :], bare)
    assert torch.equal(uncached[: len(own)], cached)
    least = torch.nn.functional.cosine_similarity(cached, behind).min().item()
    summarise("engine_lengths", model="smollm2", prefix=PREFIX, prompts=len(mixed), longest=512, least_cosine=least)


def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool(torch.nn.functional.cosine_similarity(found, expected).min() >= NEAR)
