"""Micro-batches of one optimiser step give the full batch's gradient, for every objective, in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from trl.kernels import chunked_logprob
from trl.trainer import utils

from rgalign.training.alignment.align import build_trainer
from rgalign.training.alignment.alignment_config import AlignmentConfig, Objective
from rgalign.training.alignment.alignment_inputs import AlignmentInputs
from rgalign.training.alignment.policy import load_policy
from rgalign.training.alignment.supervised_positions import supervised_positions_only
from rgalign.training.alignment.trainer_arguments import trainer_arguments

Make = Callable[..., AlignmentConfig]
TOLERANCE = 1e-6


def step_gradients(config: AlignmentConfig, objective: Objective, out: Path) -> dict[str, Tensor]:
    """Gradients of the first optimiser step."""
    inputs = AlignmentInputs.open(config, objective)
    trained, held_out = inputs.sessions()
    policy = load_policy(config, inputs.reference)
    policy.trained = policy.whole.double()
    arguments = trainer_arguments(config, objective, out, 1)
    trainer = build_trainer(inputs, policy, arguments, trained, held_out)
    steps = arguments.gradient_accumulation_steps
    trainer.current_gradient_accumulation_steps = steps
    trainer.model.train()
    batches, num_items = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), steps, torch.device("cpu"))
    assert len(batches) == steps
    for batch in batches:
        trainer.training_step(trainer.model, batch, num_items)
    return {name: value.grad for name, value in trainer.model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize(
    ("objective", "changes"),
    [
        ("sft", {}),
        ("contrast", {}),
        ("contrast", {"contrast": {"bank": 0}}),
        ("dpo", {}),
        # TRL's fused LM head gives log-probabilities in float32 whatever the model has: 1e-5 on a query's 120 nats,
        # times beta. At S-DPO's own beta of 1 that is 3e-6 in a gradient.
        ("dpo", {"dpo": {"loss": "softmax", "beta": 0.1}}),
    ],
    ids=["sft", "contrast", "contrast without bank", "dpo", "s-dpo"],
)
def test_accumulated_is_full_batch(
    objective: Objective, changes: dict[str, Any], make_config: Make, tmp_path: Path
) -> None:
    shared = {"tuning": "full", "effective_batch": 8, **changes}
    whole = step_gradients(make_config(**shared, micro_batch=8), objective, tmp_path / "whole")
    parts = step_gradients(make_config(**shared, micro_batch=2), objective, tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name, expected in whole.items():
        assert expected.dtype == torch.float64
        torch.testing.assert_close(parts[name], expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert max(float(value.abs().max()) for value in whole.values()) > 1e-2


def test_softmax_dpo_with_one_rejected_is_dpo(make_config: Make, tmp_path: Path) -> None:
    shared = {"tuning": "full", "effective_batch": 8}
    pair = step_gradients(make_config(**shared, dpo={"max_rejected": 1, "beta": 0.3}), "dpo", tmp_path / "pair")
    softmax = {"max_rejected": 1, "beta": 0.3, "loss": "softmax"}
    several = step_gradients(make_config(**shared, dpo=softmax), "dpo", tmp_path / "softmax")
    assert max(float(value.abs().max()) for value in pair.values()) > 1e-3
    for name, expected in pair.items():
        torch.testing.assert_close(several[name], expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("objective", ["sft", "contrast", "dpo"])
def test_head_at_supervised_positions_alone(
    objective: Objective, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []

    class Counted:
        @staticmethod
        def apply(hidden: Tensor, *arguments: Any) -> Any:
            rows.append(len(hidden))
            return fused(hidden, *arguments)

    fused = utils._ChunkedLogProbFunction.apply
    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", Counted)
    config = make_config(tuning="full", effective_batch=8, micro_batch=8)
    everywhere = step_gradients(config, objective, tmp_path / "everywhere")
    most, rows[:] = max(rows), []  # of one call; RG-DPO's reference is at supervised positions in both
    with supervised_positions_only():
        supervised = step_gradients(config, objective, tmp_path / "supervised")
    assert 0 < max(rows) < most / 2
    assert everywhere.keys() == supervised.keys()
    for name, gradient in everywhere.items():
        torch.testing.assert_close(supervised[name], gradient, rtol=TOLERANCE, atol=TOLERANCE)
    assert utils._use_triton is chunked_logprob._use_triton
