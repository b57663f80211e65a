"""Packing prompts that begin alike: every token once, each attending to its own prompt only."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgalign.reasoner.prefix_tree import prefix_trees

ROWS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=20)


@given(rows=ROWS, budget=st.integers(1, 40))
def test_every_prompt_reads_back_along_its_path(rows: list[list[int]], budget: int) -> None:
    prompts = [np.array(row, np.int32) for row in rows]
    seen: list[int] = []
    nodes: list[int] = []  # tokens of the tree's nodes, the given ones first
    for tree in prefix_trees(prompts, budget):
        assert len(tree.token_ids) <= budget or len(tree.rows) == 1
        nodes = [nodes[node] for node in tree.given] + tree.token_ids.tolist()
        offset = len(tree.given)
        for row, path in zip(tree.rows, tree.paths, strict=True):
            assert [nodes[node] for node in path] == rows[row]
            assert path[-1] >= offset
            for depth, node in enumerate(path):
                if node >= offset:
                    assert tree.depths[node - offset] == depth
                    assert np.flatnonzero(tree.ancestors[node - offset]).tolist() == sorted(path[: depth + 1].tolist())
        seen += tree.rows
    assert sorted(seen) == list(range(len(rows)))


@given(rows=ROWS, budget=st.integers(12, 40))
def test_no_token_is_computed_twice(rows: list[list[int]], budget: int) -> None:
    prompts = [np.array(row, np.int32) for row in {tuple(row) for row in rows}]
    distinct = {tuple(row[: length + 1]) for row in rows for length in range(len(row))}
    assert sum(len(tree.token_ids) for tree in prefix_trees(prompts, budget)) == len(distinct)


def test_a_shared_beginning_is_packed_once() -> None:
    prompts = [np.array(row, np.int32) for row in ([1, 2, 3], [1, 2, 4, 5], [1, 2, 3], [9])]
    (tree,) = prefix_trees(prompts, 100)
    assert len(tree.token_ids) == 6


def test_order_compares_tokens_not_bytes() -> None:
    """Little-endian bytes would put 256 before 1 and tear prompts that begin alike apart."""
    prompts = [np.array(row, np.int32) for row in ([256, 5], [1, 5], [256, 6], [1, 6])]
    (tree,) = prefix_trees(prompts, 100)
    assert len(tree.token_ids) == 6
    assert tree.rows == [1, 3, 0, 2]


def test_nothing_to_pack() -> None:
    assert list(prefix_trees([], 10)) == []
    with pytest.raises(StopIteration):
        next(prefix_trees([], 10))
