"""How unit vectors are stored: float32, float16, bfloat16, or int8 with one scale a row.

    int8    c = round(127 x / max|x|),   scale = 1 / |c|,   stored vector = scale c

The scale is that of the codes, not of x: the stored vector is a unit vector again, so its scores are true cosines.
What is ranked is the stored vector; the difference to x is the price of the precision (``largest_loss`` measures it).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from rgalign.errors import ConfigError, DataError
from rgalign.kernels.score_reference import decode

Precision = Literal["float32", "float16", "bfloat16", "int8"]
PRECISIONS: dict[Precision, torch.dtype] = {name: getattr(torch, name) for name in get_args(Precision)}

# How far the norm of a stored unit vector may be from 1: sums of D squares in float32, or the rounding of each value
# (half a unit in the last place: 2^-11 and 2^-8 of it, relative to the value).
UNIT_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 5e-3, torch.int8: 1e-4}

CHUNK_ROWS = 1 << 16


def encode(vectors: Tensor, precision: Precision) -> tuple[Tensor, Tensor | None]:
    """Unit vectors [N, D] float32 -> stored rows [N, D] and, for int8, scales [N] float32."""
    if precision not in PRECISIONS:
        raise ConfigError(where="precision", required=f"one of {', '.join(PRECISIONS)}", received=repr(precision))
    if precision != "int8":
        return vectors.to(PRECISIONS[precision]).contiguous(), None
    largest = vectors.abs().amax(dim=1, keepdim=True).double()
    codes = (vectors.double() / largest * 127).round()
    return codes.to(torch.int8), (1 / codes.norm(dim=1)).float()


def require_unit(vectors: Tensor, scales: Tensor | None, tolerance: float, where: str) -> None:
    """Refuses stored rows that are not unit vectors; works in chunks of rows.

    Raises:
        DataError: the first row with NaN, infinity, or a norm further from 1 than ``tolerance``.
    """
    for start in range(0, len(vectors), CHUNK_ROWS):
        chunk = slice(start, start + CHUNK_ROWS)
        rows = decode(vectors[chunk], None if scales is None else scales[chunk]).double()
        norms = rows.norm(dim=1)
        wrong = (~((norms - 1).abs() <= tolerance)).nonzero()  # "not within" also catches NaN
        if len(wrong):
            row = int(wrong[0])
            place = f"{where}, row {start + row}"
            if not rows[row].isfinite().all():
                raise DataError(where=place, required="finite values", received="NaN or infinity")
            required = f"a unit vector (norm 1 ± {tolerance:g})"
            raise DataError(where=place, required=required, received=f"norm {float(norms[row]):.6g}")


def largest_loss(vectors: Tensor, stored: Tensor) -> float:
    """Largest 1 − cosine between the given rows [N, D] and what is stored of them."""
    return float((1 - cosine_similarity(vectors.double(), stored.double(), dim=1)).max())
