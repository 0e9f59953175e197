"""One step over a tree of spans equals dense attention over each row's own history."""

from __future__ import annotations

import pytest
import torch

from shoal.engine.attention import StepAttention, Work
from shoal.engine.pool import Extent, KVPool
from shoal.engine.tree import Node

K, G, D = 3, 3, 16


def dense(q_Hd: torch.Tensor, k_LKd: torch.Tensor, v_LKd: torch.Tensor) -> torch.Tensor:
    """Attention of one query over its whole history, in the plainest way."""
    out = []
    for head, q_d in enumerate(q_Hd):
        scores_L = k_LKd[:, head // G].double() @ q_d.double() / D**0.5
        out.append(torch.softmax(scores_L, 0) @ v_LKd[:, head // G].double())
    return torch.stack(out)


class World:
    """A pool whose nodes are filled with random keys and values."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.pool = KVPool(
            layers=1, kv_heads=K, head_dim=D, dtype=torch.float32, max_bytes=6000 * 2 * K * D * 4
        )
        self.pool.keys.normal_()
        self.pool.values.normal_()

    def node(self, length: int, parent: Node | None, filled: int | None = None) -> Node:
        extents = self.pool.slots.take(length)
        assert extents is not None
        node = Node(range(length), Extent(extents[0].start, length), parent)
        node.filled = length if filled is None else filled
        return node

    def check(self, works: list[Work]) -> None:
        rows = sum(work.count for work in works)
        q, k, v = torch.randn(rows, K * G, D), torch.randn(rows, K, D), torch.randn(rows, K, D)
        attend = StepAttention(works, self.pool)
        out = attend(0, q, torch.stack((k, v), 1))
        assert attend.tokens_computed == rows
        keys, values = self.pool.keys[0], self.pool.values[0]
        row = 0
        for work in works:
            for offset in range(work.start, work.start + work.count):
                slots = [
                    slot
                    for node in work.node.path()[:-1]
                    for slot in range(node.start, node.start + len(node.tokens))
                ]
                slots += range(work.node.start, work.node.start + offset + 1)
                expected = dense(q[row], keys[slots], values[slots])
                torch.testing.assert_close(out[row].double(), expected, atol=2e-6, rtol=1e-5)
                row += 1


def test_long_prefill_over_its_own_history() -> None:
    world = World()
    node = world.node(300, None, filled=100)
    world.check([Work(node, 100, 200)])


def test_decode_rows_below_one_shared_prefix() -> None:
    world = World()
    prefix = world.node(70, None)
    tails = [world.node(length, prefix) for length in (1, 5, 33, 2)]
    world.check([Work(tail, len(tail.tokens) - 1, 1) for tail in tails])


def test_parent_and_children_computed_in_the_same_step() -> None:
    world = World()
    parent = world.node(50, None, filled=10)
    children = [world.node(length, parent) for length in (3, 40, 17)]
    world.check([Work(parent, 10, 40), *(Work(c, 0, len(c.tokens)) for c in children)])


def test_mixed_depths_long_spans_and_unrelated_requests() -> None:
    world = World()
    root = world.node(1500, None)
    left, right = world.node(20, root), world.node(9, root)
    deep = world.node(64, left)
    alone = world.node(1200, None)
    works = [
        Work(world.node(4, deep), 3, 1),
        Work(world.node(8, right), 2, 6),
        Work(alone, 1199, 1),
        Work(world.node(90, left), 30, 60),
        Work(world.node(1, deep), 0, 1),
        Work(world.node(31, None), 0, 31),
    ]
    world.check(works)


@pytest.mark.parametrize("seed", range(8))
def test_random_trees(seed: int) -> None:
    world = World(seed)
    draw = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=draw))

    nodes: list[Node | None] = [None]
    for _ in range(number(1, 5)):
        nodes.append(world.node(number(1, 60), nodes[number(0, len(nodes) - 1)]))
    works = []
    for _ in range(number(1, 8)):
        node = world.node(number(1, 80), nodes[number(0, len(nodes) - 1)])
        start = number(0, len(node.tokens) - 1)
        works.append(Work(node, start, number(1, len(node.tokens) - start)))
    world.check(works)


@pytest.mark.parametrize("length", [1024, 1537, 4099])
def test_long_spans_above_few_rows(length: int) -> None:
    world = World()
    prefix = world.node(length, None)
    world.check([Work(world.node(n, prefix), 0, n) for n in (1, 1, 5)])


def test_spans_of_different_readers_are_merged_as_one_level() -> None:
    world = World()
    first, second = world.node(300, None), world.node(200, None)
    below = world.node(100, second)
    works = [Work(world.node(3, first), 0, 3) for _ in range(3)]
    works += [Work(world.node(2, below), 0, 2) for _ in range(2)]
    works += [Work(world.node(2, second), 0, 2)]
    world.check(works)
    levels = StepAttention(works, world.pool)._levels
    assert [level.rows for level in levels] == [[9, 6], [4]]
