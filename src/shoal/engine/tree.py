"""The prefix tree over token ids: every piece of KV cache is a node, also while it is filled.

A node is a run of tokens with the slots that hold their keys and values. Prompts are inserted
before they are computed, so requests that share tokens wait for the same node instead of
computing it twice. Nodes outside the tree (a request's own tail, a candidate to be scored)
hang on their parent without being found by others.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence

import torch

from shoal.engine.pool import Extent, ExtentAllocator

_clock = itertools.count(1)

_SALTS = 1024  # roots beyond which empty ones are looked for
_SLOTS_A_NODE = 8  # on average: a node takes a few KB beside its slots
_FEWEST = 1024  # nodes that are always allowed


class Node:
    """A run of tokens at positions ``position .. position + len(tokens)``.

    tokens    token ids; grows at the end in a request's tail, never in the tree
    start     first slot; the node owns ``capacity`` slots from there
    filled    how many tokens have their keys and values in the slab
    pins      requests that need the node; an unpinned leaf may be evicted
    last_hidden  final hidden state [D] of the last token, once computed (None after a split)
    all_hidden   final hidden states [tokens, D] where ``keep_hidden`` asked for them
    """

    __slots__ = (
        "all_hidden",
        "attached",
        "capacity",
        "children",
        "filled",
        "keep_hidden",
        "last_hidden",
        "parent",
        "pins",
        "position",
        "start",
        "tokens",
        "used_at",
    )

    def __init__(self, tokens: Sequence[int], extent: Extent, parent: Node | None) -> None:
        self.tokens = list(tokens)
        self.start = extent.start
        self.capacity = extent.length
        self.parent = parent
        self.position: int = parent.position + len(parent.tokens) if parent else 0
        self.children: dict[int, Node] = {}
        self.attached = False
        self.filled = 0
        self.pins = 0
        self.used_at = next(_clock)
        self.last_hidden: torch.Tensor | None = None
        self.keep_hidden = False
        self.all_hidden: torch.Tensor | None = None

    @property
    def complete(self) -> bool:
        return self.filled == len(self.tokens)

    @property
    def extent(self) -> Extent:
        return Extent(self.start, self.capacity)

    def path(self) -> list[Node]:
        """From the topmost node that holds tokens down to this one."""
        nodes = []
        node: Node | None = self
        while node is not None and node.capacity:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


class PrefixTree:
    """Nodes by token content, one root per salt; owns the slots of all nodes it made."""

    def __init__(self, slots: ExtentAllocator) -> None:
        self._slots = slots
        self._pinned = 0
        self._roots: dict[str, Node] = {}
        self._sweep_at = _SALTS
        self._findable = 0
        self._most = max(_FEWEST, slots.capacity // _SLOTS_A_NODE)

    def _root(self, salt: str) -> Node:
        root = self._roots.get(salt)
        if root is None:
            if len(self._roots) >= self._sweep_at:  # salts under which nothing is kept any more
                self._roots = {one: kept for one, kept in self._roots.items() if kept.children}
                self._sweep_at = max(_SALTS, 2 * len(self._roots))
            root = self._roots[salt] = Node((), Extent(0, 0), None)
            root.attached = True
        return root

    def match(self, tokens: Sequence[int], salt: str) -> int:
        """How many leading tokens are in the tree (computed or promised)."""
        return self._descend(tokens, salt)[1]

    def cost(self, tokens: Sequence[int], salt: str) -> int:
        """Slots that holding these tokens would take out of ``free`` and ``evictable``."""
        node, done, inside = self._descend(tokens, salt)
        held = sum(each.capacity for each in node.path()[:-1] if not each.pins)
        return len(tokens) - done + held + (0 if node.pins else inside)

    def _descend(self, tokens: Sequence[int], salt: str) -> tuple[Node, int, int]:
        """The deepest node reached, tokens matched in all, and within that node."""
        node, done = self._root(salt), 0
        inside = 0
        while done < len(tokens) and (child := node.children.get(tokens[done])) is not None:
            inside = _common(child.tokens, tokens, done)
            done += inside
            node = child
            if inside < len(child.tokens):
                break
        return node, done, inside

    def insert(self, tokens: Sequence[int], salt: str) -> Node | None:
        """The node at whose end these tokens end, pinned from the root; None: no memory.

        What is not in the tree yet is added unfilled. Evicts unpinned leaves where slots are
        short, or where many short nodes would take more memory than what they keep.
        """
        if self._findable > self._most:
            self._evict(0, self._findable - self._most * 7 // 8)
        node, done, inside = self._descend(tokens, salt)
        if node.capacity and inside < len(node.tokens):
            node = self._split(node, inside)
        self.pin(node)
        if done < len(tokens):
            end = self.extend(node, tokens[done:], attach=True)
            if end is None:
                self.unpin(node)
                return None
            node = end
        return node

    def extend(
        self, parent: Node | None, tokens: Sequence[int], *, attach: bool = False
    ) -> Node | None:
        """New nodes for ``tokens`` below ``parent``, pinned once; the last of them.

        There are several when the free slots lie in pieces. None when memory does not suffice
        even after eviction. Without ``attach`` nobody else will find them.
        """
        extents = self._take(len(tokens))
        if extents is None:
            return None
        done = 0
        for extent in extents:
            part = tokens[done : done + extent.length]
            done += len(part)
            parent = self._hang(parent, part, extent, attach)
        return parent

    def tail(self, parent: Node | None, room: int) -> Node | None:
        """An empty private node below ``parent`` with up to ``room`` slots to grow into."""
        extents = self._take(room) or self._take(1)
        if extents is None:
            return None
        for spare in extents[1:]:
            self._slots.give(spare)
        return self._hang(parent, (), extents[0], attach=False)

    def _hang(
        self, parent: Node | None, tokens: Sequence[int], extent: Extent, attach: bool
    ) -> Node:
        node = Node(tokens, extent, parent)
        node.pins = 1
        self._pinned += extent.length
        if attach:
            assert parent is not None and tokens[0] not in parent.children
            parent.children[tokens[0]] = node
            node.attached = True
            self._findable += 1
        return node

    def _take(self, length: int) -> list[Extent] | None:
        if length > self._slots.free:
            self._evict(length - self._slots.free)
        return self._slots.take(length)

    def _split(self, node: Node, at: int) -> Node:
        """Cut a node in two; the object keeps the lower part, the new upper one is returned."""
        assert node.attached and node.parent is not None
        upper = Node(node.tokens[:at], Extent(node.start, at), node.parent)
        upper.attached = True
        self._findable += 1
        upper.filled = min(node.filled, at)
        upper.pins = node.pins
        upper.used_at = node.used_at
        upper.children = {node.tokens[at]: node}
        node.parent.children[node.tokens[0]] = upper
        node.parent = upper
        node.tokens = node.tokens[at:]
        node.start += at
        node.capacity -= at
        node.position += at
        node.filled -= upper.filled
        return upper

    def pin(self, node: Node) -> None:
        """Hold a node and all above it."""
        for each in node.path():
            if not each.pins:
                self._pinned += each.capacity
            each.pins += 1
            each.used_at = next(_clock)

    def unpin(self, node: Node) -> None:
        """Let go of a node and all above it; what nobody can find or complete is freed."""
        for each in reversed(node.path()):
            self.drop(each)

    def drop(self, node: Node) -> None:
        """Let go of one node alone, not of those above it."""
        assert node.pins > 0, "a node is unpinned once for every pin"
        node.pins -= 1
        if not node.pins:
            self._pinned -= node.capacity
            if not (node.attached and node.complete):
                self._trim(node)

    def forget(self, path: Sequence[Node]) -> None:
        """Free what nobody needs at the end of a path, instead of keeping it to be found."""
        for node in reversed(path):
            if node.pins or node.children:
                return
            if node.capacity:
                self._free(node)

    def _trim(self, node: Node) -> None:
        """Free what an unpinned node has not filled, or all of a node outside the tree."""
        if node.attached and node.filled and not node.children:
            self._cut(node)
        elif not node.children:
            self._free(node)

    def _free(self, node: Node) -> None:
        if node.attached and node.parent is not None:
            del node.parent.children[node.tokens[0]]
        self._findable -= node.attached
        node.attached = False
        if node.capacity:
            self._slots.give(node.extent)
        node.capacity = 0

    def adopt(self, node: Node) -> None:
        """Make a finished tail findable: later prompts that contain its tokens share it.

        The node stays pinned by its owner, who unpins as usual. Slots it never filled are
        returned. A tail whose first token is already known below its parent stays private.
        """
        parent = node.parent
        if parent is None or not parent.attached or not node.filled:
            return
        if node.tokens[0] in parent.children:
            return
        if len(node.tokens) > node.filled:
            node.last_hidden = None
        self._cut(node)
        parent.children[node.tokens[0]] = node
        node.attached = True
        self._findable += 1

    def _cut(self, node: Node) -> None:
        """Return the slots that a node has not filled."""
        spare = Extent(node.start + node.filled, node.capacity - node.filled)
        if spare.length:
            self._slots.give(spare)
            self._pinned -= spare.length if node.pins else 0
        node.tokens = node.tokens[: node.filled]
        node.capacity = node.filled

    def _evict(self, wanted: int, nodes: int = 0) -> None:
        """Free least recently used unpinned leaves: so many slots, and so many nodes."""
        leaves = [
            (node.used_at, id(node), node)
            for node in self.nodes()
            if not node.pins and not node.children
        ]
        heapq.heapify(leaves)
        freed = gone = 0
        while leaves and (freed < wanted or gone < nodes):
            _, _, node = heapq.heappop(leaves)
            parent = node.parent
            freed += node.capacity
            gone += 1
            self._free(node)
            if parent is not None and parent.capacity and not (parent.pins or parent.children):
                heapq.heappush(leaves, (parent.used_at, id(parent), parent))

    @property
    def free(self) -> int:
        """Slots nobody uses."""
        return self._slots.free

    @property
    def pinned(self) -> int:
        """Slots of nodes that requests under way hold."""
        return self._pinned

    @property
    def evictable(self) -> int:
        """Slots that eviction could free, all told."""
        return self._slots.capacity - self._slots.free - self._pinned

    def nodes(self) -> Iterator[Node]:
        """All findable nodes, parents before children."""
        stack = [child for root in self._roots.values() for child in root.children.values()]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())


def _common(known: list[int], tokens: Sequence[int], offset: int) -> int:
    """Length of the common beginning of ``known`` and ``tokens[offset:]``."""
    limit = min(len(known), len(tokens) - offset)
    if known[:limit] == list(tokens[offset : offset + limit]):
        return limit
    low, high = 0, limit  # known[:low] agrees, known[:high] does not
    while high - low > 1:
        middle = (low + high) // 2
        if known[low:middle] == list(tokens[offset + low : offset + middle]):
            low = middle
        else:
            high = middle
    return low
