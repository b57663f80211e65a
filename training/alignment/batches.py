"""Rows for the trainers and how they become padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rgalign.training.alignment.tokenised import TokenisedPreference

IGNORED = -100


def completion_rows(sessions: Sequence[TokenisedPreference]) -> list[dict[str, Any]]:
    """[prompt; chosen query] with a loss on the query alone."""
    return [
        {
            "input_ids": session.prompt + session.chosen,
            "labels": [IGNORED] * len(session.prompt) + session.chosen,
            "prompt_end": len(session.prompt) - 1,
            "row": session.row,
        }
        for session in sessions
    ]


def pair_rows(sessions: Sequence[TokenisedPreference]) -> list[dict[str, Any]]:
    """One row a (chosen, rejected) pair, in TRL's columns."""
    return [
        {"prompt_ids": session.prompt, "chosen_ids": session.chosen, "rejected_ids": other, "row": session.row}
        for session in sessions
        for other in session.rejected
    ]


def softmax_rows(sessions: Sequence[TokenisedPreference]) -> list[dict[str, Any]]:
    """One row a session that has a rejected query."""
    return [
        {
            "prompt_ids": session.prompt,
            "chosen_ids": session.chosen,
            "rejected_ids": session.rejected,
            "row": session.row,
        }
        for session in sessions
        if session.rejected
    ]


@dataclass(frozen=True)
class CompletionBatch:
    """Collates :func:`completion_rows`: input_ids, attention_mask, labels [B, T]; prompt_end, row [B]."""

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        batch = padded([row["input_ids"] for row in rows], self.pad_token_id)
        labels = padded([row["labels"] for row in rows], IGNORED)["input_ids"]
        return {**batch, "labels": labels, **_columns(rows)}


@dataclass(frozen=True)
class PreferenceBatch:
    """Collates :func:`pair_rows` and :func:`softmax_rows`: all chosen sequences, then all rejected ones.

    ``owner`` [R] is the chosen sequence that each rejected one belongs to; ``ref_chosen_logps`` [B] and
    ``ref_rejected_logps`` [R] stand beside them once they are computed.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        rejected = [_rejected(row) for row in rows]
        queries = [(row["prompt_ids"], row["chosen_ids"]) for row in rows]
        queries += [(row["prompt_ids"], ids) for row, others in zip(rows, rejected, strict=True) for ids in others]
        batch = padded([prompt + query for prompt, query in queries], self.pad_token_id)
        masks = padded([[0] * len(prompt) + [1] * len(query) for prompt, query in queries], 0)
        batch["completion_mask"] = masks["input_ids"]
        batch["owner"] = torch.tensor([place for place, others in enumerate(rejected) for _ in others])
        ends = [{**row, "prompt_end": len(row["prompt_ids"]) - 1} for row in rows]
        batch |= _columns(ends)
        if "ref_chosen_logps" in rows[0]:
            batch["ref_chosen_logps"] = torch.tensor([row["ref_chosen_logps"] for row in rows], dtype=torch.float64)
            reference = [_listed(row["ref_rejected_logps"]) for row in rows]
            batch["ref_rejected_logps"] = torch.tensor(
                [value for values in reference for value in values], dtype=torch.float64
            )
        return batch


def padded(rows: Sequence[Sequence[int]], value: int) -> dict[str, Tensor]:
    """Rows padded on the right, and the mask of what is none."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), value)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    names = [name for name in ("prompt_end", "row", "place") if name in rows[0]]
    return {name: torch.tensor([row[name] for row in rows]) for name in names}


def _rejected(row: dict[str, Any]) -> list[list[int]]:
    ids = row["rejected_ids"]
    return ids if isinstance(ids[0], list) else [ids]


def _listed(values: Any) -> list[float]:
    return values if isinstance(values, list) else [values]
