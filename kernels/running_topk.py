"""The k best of a stream of score tiles, held in registers: device functions for Triton kernels.

A list is two tensors [K_PAD, BLOCK_B], scores and rows, in no order; slots from K on hold +inf and stay. Rows come in
ascending order, so a later row that only ties with the worst winner has lost: ties go to the lowest row by themselves.
A tile in which nobody beats his worst winner, which is nearly every tile, costs one comparison.
"""

import triton
import triton.language as tl

NO_ROW = tl.constexpr(2**31 - 1024)  # rows from here on are empty slots
INF = tl.constexpr(float("inf"))


@triton.jit
def empty_list(K: tl.constexpr, K_PAD: tl.constexpr, BLOCK_B: tl.constexpr):
    slot = tl.arange(0, K_PAD)[:, None]
    scores = tl.where(slot < K, -INF, INF) + tl.zeros([K_PAD, BLOCK_B], tl.float32)
    rows = NO_ROW + slot + tl.zeros([K_PAD, BLOCK_B], tl.int32)  # all different, so that one slot is named by its row
    return scores, rows


@triton.jit
def insert(scores, rows, best_scores, best_rows):
    """A tile's scores [BLOCK_N, BLOCK_B] (-inf: not a candidate; NaN never enters), rows [BLOCK_N, 1] ascending."""
    worst = tl.min(best_scores, axis=0)
    top = tl.max(scores, axis=0)
    while tl.max((top > worst).to(tl.int32), axis=0) > 0:
        better = top > worst
        row = tl.min(tl.where(scores == top[None, :], rows, NO_ROW), axis=0)
        is_worst = best_scores == worst[None, :]
        leaving = tl.max(tl.where(is_worst, best_rows, -1), axis=0)  # of equal ones the highest row
        slot = is_worst & (best_rows == leaving[None, :]) & better[None, :]
        best_scores = tl.where(slot, top[None, :], best_scores)
        best_rows = tl.where(slot, row[None, :], best_rows)
        scores = tl.where(rows == row[None, :], -INF, scores)
        worst = tl.min(best_scores, axis=0)
        top = tl.max(scores, axis=0)
    return best_scores, best_rows


@triton.jit
def take_best(scores, rows):
    """The best of each column of lists [M, BLOCK_B], and the lists without it; -inf and a row from NO_ROW on: none."""
    top = tl.max(scores, axis=0)
    row = tl.min(tl.where(scores == top[None, :], rows, NO_ROW), axis=0)
    taken = (scores == top[None, :]) & (rows == row[None, :])
    return top, row, tl.where(taken, -INF, scores), tl.where(taken, NO_ROW, rows)
