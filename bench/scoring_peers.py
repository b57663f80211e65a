"""What the CPU scorer is measured against: the k best inner products by torch, FAISS, hnswlib and NumPy.

Every variant answers [B, k] rows for [B, D] unit queries and owns its copy of the catalogue. A peer that is not
installed is left out (`pip install rgalign[bench]`).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from rgalign.cpu_scorer import CpuIndex, Scan, cpu_score

Matrix = NDArray[np.float32]
Rows = NDArray[np.int64]

HNSW_LINKS, HNSW_BUILD_BREADTH, HNSW_BREADTH = 16, 200, 100
HNSW_LARGEST = 100_000


@dataclass(frozen=True)
class Variant:
    """One way to the answer.

    Args:
        find: unit queries [B, D] -> rows [B, k].
        bytes_per_value: of the catalogue, as it is scanned; None for what does not scan it.
        exact: whether it promises the exact answer (in float32).
    """

    find: Callable[[Matrix], Rows]
    bytes_per_value: int | None
    exact: bool


def versions() -> dict[str, str]:
    """Of the peers that are installed."""
    names = {"faiss-cpu": "faiss", "hnswlib": "hnswlib"}
    return {name: importlib.metadata.version(name) for name, module in names.items() if installed(module)}


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def variants(rows: Matrix, k: int, threads: int, *, skip: tuple[str, ...]) -> dict[str, Variant]:
    """All that are installed and make sense for this catalogue, ours first."""
    torch.set_num_threads(threads)
    threadpool_limits(threads, user_api="blas")
    made = {
        "rgalign fp32": ours(rows, k, threads, "fp32"),
        "rgalign int8": ours(rows, k, threads, "int8"),
        "torch": with_torch(rows, k, compiled=False),
        "numpy": with_numpy(rows, k),
    }
    if "torch.compile" not in skip:
        made["torch.compile"] = with_torch(rows, k, compiled=True)
    if installed("faiss") and "faiss" not in skip:
        made["faiss flat"] = with_faiss(rows, k, threads, quantised=False)
        made["faiss sq8"] = with_faiss(rows, k, threads, quantised=True)
    if installed("hnswlib") and "hnswlib" not in skip and len(rows) <= HNSW_LARGEST:
        made["hnswlib"] = with_hnswlib(rows, k, threads)
    return made


def ours(rows: Matrix, k: int, threads: int, scan: Scan) -> Variant:
    index = CpuIndex(rows, int8=scan == "int8")
    limit = our_threads(threads)

    def find(queries: Matrix) -> Rows:
        omega = np.ones(len(queries), np.float32)
        return cpu_score(index, queries, None, None, None, omega, k, num_threads=limit, scan=scan).rows

    return Variant(find, 4 if scan == "fp32" else 1, exact=True)


def our_threads(threads: int) -> int | None:
    """All cores are the default, which takes as many as the work is worth, as the peers do."""
    return None if threads >= len(os.sched_getaffinity(0)) else threads


def with_torch(rows: Matrix, k: int, *, compiled: bool) -> Variant:
    catalogue = torch.from_numpy(rows)

    def best(queries: torch.Tensor) -> torch.Tensor:
        return (queries @ catalogue.T).topk(k).indices

    call = torch.compile(best, dynamic=False) if compiled else best

    @torch.inference_mode()
    def find(queries: Matrix) -> Rows:
        found: Rows = call(torch.from_numpy(queries)).numpy()
        return found

    return Variant(find, 4, exact=True)


def with_numpy(rows: Matrix, k: int) -> Variant:
    def find(queries: Matrix) -> Rows:
        scores = queries @ rows.T
        best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1)
        return np.take_along_axis(best, order, 1)

    return Variant(find, 4, exact=True)


def with_faiss(rows: Matrix, k: int, threads: int, *, quantised: bool) -> Variant:
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.index_factory(rows.shape[1], "SQ8" if quantised else "Flat", faiss.METRIC_INNER_PRODUCT)
    if quantised:
        index.train(rows)
    index.add(rows)
    return Variant(lambda queries: index.search(queries, k)[1], 1 if quantised else 4, exact=not quantised)


def with_hnswlib(rows: Matrix, k: int, threads: int) -> Variant:
    import hnswlib

    index = hnswlib.Index(space="ip", dim=rows.shape[1])
    index.init_index(max_elements=len(rows), M=HNSW_LINKS, ef_construction=HNSW_BUILD_BREADTH, random_seed=0)
    index.set_num_threads(threads)
    index.add_items(rows)
    index.set_ef(max(HNSW_BREADTH, k))
    return Variant(lambda queries: index.knn_query(queries, k)[0].astype(np.int64), None, exact=False)
