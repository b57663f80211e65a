"""The coordinates in which RG-CL takes cosines.

A language model's states share a large mean, and a few coordinates carry most of their length: embeddings of
different questions have cosines of 0.98, so that at tau = 0.05 a perfect latent query hardly beats a random one, and
many negatives look like false ones. Standardised, each coordinate by the mean and deviation that the frozen reasoner
gives it, cosines use their whole range; it is also how the query tower reads states.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_DEVIATION = 1e-6  # a coordinate that hardly moves keeps its scale


@dataclass(frozen=True)
class Space:
    """Args: mean, scale: [D] float32."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> Space:
        """The space in which ``vectors`` [n, D] have mean 0 and deviation 1."""
        deviation = vectors.float().std(dim=0, correction=0)
        scale = torch.where(deviation > SMALLEST_DEVIATION, deviation, torch.ones_like(deviation))
        return cls(vectors.float().mean(dim=0), scale)

    @classmethod
    def raw(cls, dim: int) -> Space:
        return cls(torch.zeros(dim), torch.ones(dim))

    def __call__(self, vectors: Tensor) -> Tensor:
        return (vectors - self.mean.to(vectors)) / self.scale.to(vectors)

    def back(self, vectors: Tensor) -> Tensor:
        """The inverse."""
        return vectors * self.scale.to(vectors) + self.mean.to(vectors)
