"""The offline side: embedding passes over all sessions, and training."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from rgalign.config import Config
from rgalign.planner.curve import Curve


class OfflineConfig(Config):
    """Args:
    sessions: of a pass; the paper's are 7.53 million.
    passes: embeddings of all of them: for stage 1, for the reward, after the alignment.
    devices: replicas that embed, and devices that train.
    train_sessions, train_epochs, train_ms: of the alignment; the last is a measured step's time over its sessions,
        of one device.
    train_efficiency: of ``devices`` devices against one.
    """

    sessions: int = Field(default=7_530_000, ge=1)
    passes: int = Field(default=3, ge=1)
    devices: int = Field(default=1, ge=1)
    train_sessions: int = Field(default=0, ge=0)
    train_epochs: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    train_ms: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    train_efficiency: float = Field(default=1.0, gt=0, le=1)


@dataclass(frozen=True)
class OfflinePlan:
    """Hours of the wall clock, and of all devices together."""

    embed_hours: float
    train_hours: float
    device_hours: float


def plan_offline(curve: Curve, config: OfflineConfig) -> OfflinePlan:
    """Full batches all the time, equal prompts not merged: an upper bound of what `rgalign embed` takes."""
    embed = config.sessions * config.passes / curve.rows_per_second / config.devices / 3_600
    work_ms = config.train_sessions * config.train_epochs * config.train_ms
    train = work_ms / 1_000 / 3_600 / (config.devices * config.train_efficiency)
    return OfflinePlan(embed, train, (embed + train) * config.devices)
