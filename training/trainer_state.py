"""Checkpoints that make a killed run end with the very weights of an undisturbed one.

    step-00000120.safetensors   weights, AdamW moments, torch's random states
    state.json                  everything else, and the names of the tensor files it belongs to

``state.json`` is renamed into place last and is what makes a checkpoint valid, so a kill between any two writes leaves
the previous checkpoint whole. Files it does not name are removed afterwards. No pickle.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rgalign.errors import DataError
from rgalign.files import atomic_path, read_json, sha256_file, write_json

STATE = "state.json"
FORMAT = 1


@dataclass
class Progress:
    """Where training stands: all that is neither a tensor nor a source of randomness.

    Args:
        epoch: the epoch under way, from 0; equal to the number of finished epochs.
        step: optimiser steps taken in all.
        position: the data source's own note of where in the epoch it is, None at its start.
        loss_sum, num_sessions, seconds: of the epoch under way.
        total_sessions, total_seconds: of all training steps, without evaluation.
        best_epoch, best_value: of the validation metric; the epoch counts from 1, 0 is none yet.
        stale_epochs: epochs since the best; lr_factor: what the plateau schedule has made of the learning rate.
        stopped: no further epoch will be trained.
        history: one record a finished epoch.
    """

    epoch: int = 0
    step: int = 0
    position: dict[str, Any] | None = None
    loss_sum: float = 0.0
    num_sessions: int = 0
    seconds: float = 0.0
    total_sessions: int = 0
    total_seconds: float = 0.0
    best_epoch: int = 0
    best_value: float | None = None
    lr_factor: float = 1.0
    stale_epochs: int = 0
    stopped: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)

    def close_epoch(self, record: dict[str, Any], value: float) -> bool:
        """Books a finished epoch whose validation metric is ``value``; True if it is the best so far."""
        self.history.append(record)
        self.epoch += 1
        self.position = None
        self.total_sessions += self.num_sessions
        self.total_seconds += self.seconds
        self.loss_sum, self.num_sessions, self.seconds = 0.0, 0, 0.0
        improved = self.best_value is None or value > self.best_value
        if improved:
            self.best_epoch, self.best_value, self.stale_epochs = self.epoch, value, 0
        else:
            self.stale_epochs += 1
        return improved


def save_weights(module: nn.Module, path: Path) -> None:
    write_tensors(module.state_dict(), path)


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    with atomic_path(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, temporary)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's moments and step counts by parameter number."""
    state: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return {f"{number}.{name}": tensor for number, entry in state.items() for name, tensor in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Fills a fresh optimiser over the same parameters; its own settings (learning rate, decay) stay."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


@dataclass(frozen=True)
class RandomState:
    """State of every generator that training may draw from, on one process."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]

    @classmethod
    def capture(cls) -> RandomState:
        tensors = {"torch": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors["cuda"] = torch.cuda.get_rng_state()
        numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002 the global generator's state is the point
        numpy_state["state"] = {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist()}
        return cls(tensors, {"numpy": numpy_state, "python": random.getstate()})

    def restore(self) -> None:
        torch.set_rng_state(self.tensors["torch"])
        if "cuda" in self.tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.tensors["cuda"])
        numpy_state = dict(self.values["numpy"])
        numpy_state["state"] = {**numpy_state["state"], "key": np.array(numpy_state["state"]["key"], np.uint32)}
        np.random.set_state(numpy_state)  # noqa: NPY002
        version, internal, gauss = self.values["python"]
        random.setstate((version, tuple(internal), gauss))


class Checkpoints:
    """The directory ``checkpoint/`` of a run: the newest state, and the weights of the best epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._best: str | None = None

    def save_best(self, module: nn.Module, epoch: int) -> None:
        """Valid from the next ``save`` on: until then the state names the former best."""
        name = f"best-{epoch:04d}.safetensors"
        save_weights(module, self.path / name)
        self._best = name

    def save(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, randomness: list[RandomState]
    ) -> None:
        """Args: randomness: of each process, in rank order."""
        tensors = {f"model.{name}": tensor for name, tensor in module.state_dict().items()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in optimizer_tensors(optimizer).items()}
        for rank, state in enumerate(randomness):
            tensors |= {f"random.{rank}.{name}": tensor for name, tensor in state.tensors.items()}
        # An epoch's end and its last step share a step number: the epoch keeps the two files apart.
        name = f"step-{progress.step:08d}-epoch-{progress.epoch:04d}.safetensors"
        write_tensors(tensors, self.path / name)
        state_json = {
            "format": FORMAT,
            "progress": progress.__dict__,
            "random": [state.values for state in randomness],
            "tensors": name,
            "tensors_sha256": sha256_file(self.path / name),
            "best": self._best,
        }
        write_json(self.path / STATE, state_json)
        self._remove_others({name, self._best, STATE})

    def load(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Progress, list[RandomState]] | None:
        """Restores module and optimiser in place; None without a checkpoint.

        Raises:
            DataError: the tensors are not those the state was written with.
        """
        if not (self.path / STATE).is_file():
            return None
        state = read_json(self.path / STATE)
        path = self.path / state["tensors"]
        if state["format"] != FORMAT or not path.is_file() or sha256_file(path) != state["tensors_sha256"]:
            raise DataError(where=str(path), required=f"the tensors of {STATE}", received="another or damaged file")
        tensors = load_file(path)
        module.load_state_dict(_under("model.", tensors))
        restore_optimizer(optimizer, _under("optimizer.", tensors))
        self._best = state["best"]
        randomness = [
            RandomState(_under(f"random.{rank}.", tensors), values) for rank, values in enumerate(state["random"])
        ]
        return Progress(**state["progress"]), randomness

    def best_weights(self) -> dict[str, Tensor]:
        assert self._best is not None, "an epoch has been finished"
        return load_file(self.path / self._best)

    def _remove_others(self, kept: set[str | None]) -> None:
        for path in self.path.iterdir():
            if path.name not in kept:
                path.unlink()


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
