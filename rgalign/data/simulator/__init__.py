"""A simulated e-commerce chatbot: sessions with known truth (docs/simulator.md)."""

from rgalign.data.simulator.config import SimulatorConfig
from rgalign.data.simulator.simulate import simulate
from rgalign.data.simulator.truth import Truth, ceilings, read_truth

__all__ = ["SimulatorConfig", "Truth", "ceilings", "read_truth", "simulate"]
