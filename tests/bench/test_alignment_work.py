"""The alignment step's benchmark times steps that were seen to agree."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from rgalign.bench import alignment_work
from rgalign.bench.alignment_work import RGALIGN, SHARED, TRL, measure
from rgalign.training.alignment import frozen_head


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_measures_each_variant(dtype: str) -> None:
    rows = measure(2, 1, 300, dtype, repeats=2)
    assert [each["variant"] for each in rows] == [TRL, SHARED, RGALIGN]
    assert all(each["sessions_per_s"]["median"] > 0 and each["dtype"] == dtype for each in rows)


def test_a_step_that_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = frozen_head.token_log_probs

    def doubled(*arguments: Any) -> tuple[Tensor, ...]:
        log_probs, *others = plain(*arguments)
        return (2 * log_probs, *others)

    monkeypatch.setattr(frozen_head, "token_log_probs", doubled)
    with pytest.raises(AssertionError, match="rgalign: gradients 1 from TRL's"):
        alignment_work.measure(2, 1, 300, "float32", repeats=1)
