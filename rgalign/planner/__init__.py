"""How many replicas a load needs: the real batcher's state machine in virtual time, driven by a measured curve."""

from rgalign.planner.curve import Curve, read_curve
from rgalign.planner.offline import OfflineConfig, OfflinePlan, plan_offline
from rgalign.planner.search import Plan, PlanConfig, plan
from rgalign.planner.simulation import Outage, Simulated, simulate

__all__ = [
    "Curve",
    "OfflineConfig",
    "OfflinePlan",
    "Outage",
    "Plan",
    "PlanConfig",
    "Simulated",
    "plan",
    "plan_offline",
    "read_curve",
    "simulate",
]
