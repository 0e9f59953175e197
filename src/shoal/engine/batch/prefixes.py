"""The compact prefix tree of all prompts of a job, in arrays: a sort and one pass.

Prompts are sorted as byte strings; neighbours then share the longest beginnings, and the tree
follows from how long those are (Kasai et al. do the same with suffixes). Nothing here is tied to
slots or requests: it says what is shared, before anything is computed.

Shapes: P prompts, N nodes. Node 0 is the root, which holds nothing; parents come before children.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shoal.core.errors import InputError

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Prefixes:
    """The tree. ``order_P`` sorts the prompts; a node covers a stretch of that order.

    parent_N    the node above (the root is its own)
    end_N       tokens from the root to the node's end
    first_N, last_N  prompts ``order_P[first:last]`` begin with this node's tokens
    terminal_P  the node at which each prompt ends; equal prompts end at the same node
    length_P    tokens of each prompt
    """

    parent_N: Ints
    end_N: Ints
    first_N: Ints
    last_N: Ints
    order_P: Ints
    terminal_P: Ints
    length_P: Ints

    @property
    def runs(self) -> Ints:
        """Tokens of each node alone, [N]."""
        run: Ints = self.end_N - self.end_N[self.parent_N]
        return run

    @property
    def prompts(self) -> Ints:
        """How many prompts begin with each node's tokens, [N]."""
        prompts: Ints = self.last_N - self.first_N
        return prompts

    @property
    def tokens(self) -> int:
        """Tokens of the tree: what must be computed at the least."""
        return int(self.runs.sum())

    @property
    def logical_tokens(self) -> int:
        """Tokens of all prompts."""
        return int(self.length_P.sum())

    def path(self, node: int) -> list[int]:
        """Nodes from below the root down to this one."""
        nodes = []
        while node:
            nodes.append(node)
            node = int(self.parent_N[node])
        return nodes[::-1]


def saving(processed: float, logical: float) -> float:
    """Percent of prompt tokens that were not computed: the paper's measure of a cache."""
    return (1 - processed / logical) * 100 if logical else 0.0


def find_prefixes(prompts: Sequence[ArrayLike], scopes: Sequence[str] | None = None) -> Prefixes:
    """The tree of ``prompts`` (token ids). Prompts of different ``scopes`` never share.

    Raises :class:`InputError` for a prompt without tokens, naming its index.
    """
    arrays = [np.asarray(prompt, dtype=">u4") for prompt in prompts]
    length_P = np.array([len(array) for array in arrays], dtype=np.int64)
    if len(length_P) and not length_P.all():
        empty = int(np.flatnonzero(length_P == 0)[0])
        raise InputError(f"Prompt {empty} is empty: give it at least one token.")
    names = {scope: place for place, scope in enumerate(dict.fromkeys(scopes or ()))}
    scope_P = [names[scope] for scope in scopes] if scopes else [0] * len(arrays)
    # Big-endian numbers sort as bytes do; the scope in front keeps scopes apart.
    keys = [
        scope.to_bytes(4, "big") + array.tobytes()
        for scope, array in zip(scope_P, arrays, strict=True)
    ]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    common = [0] * len(order)
    for place in range(1, len(order)):
        above, here = order[place - 1], order[place]
        if scope_P[above] == scope_P[here]:
            common[place] = _common(arrays[above], arrays[here], keys[above], keys[here])
    return _tree(np.array(order, dtype=np.int64), length_P, common)


def _common(a: NDArray[np.uint32], b: NDArray[np.uint32], key_a: bytes, key_b: bytes) -> int:
    """How many tokens two neighbours begin with alike; ``a`` sorts before ``b``."""
    if len(key_a) <= len(key_b) and key_b.startswith(key_a):
        return len(a)
    limit = min(len(a), len(b))
    return int((a[:limit] != b[:limit]).argmax())


def _tree(order_P: Ints, length_P: Ints, common: Sequence[int]) -> Prefixes:
    """Nodes from the sorted prompts' common beginnings, by a stack of open nodes."""
    end, first, last, parent = [0], [0], [0], [0]

    def opened(depth: int, begin: int) -> int:
        end.append(depth)
        first.append(begin)
        last.append(0)
        parent.append(0)
        return len(end) - 1

    stack = [0]
    terminal = [0] * len(order_P)

    def close_to(depth: int, here: int) -> None:
        """Close all nodes that end deeper; the last of them may need a shorter parent."""
        while end[stack[-1]] > depth:
            node = stack.pop()
            last[node] = here
            if end[stack[-1]] < depth:
                stack.append(opened(depth, first[node]))
            parent[node] = stack[-1]

    lengths = length_P[order_P].tolist()
    for here, (length, shared) in enumerate(zip(lengths, common, strict=True)):
        close_to(shared, here)
        if length > end[stack[-1]]:
            stack.append(opened(length, here))
        terminal[here] = stack[-1]
    close_to(0, len(order_P))
    last[0] = len(order_P)
    nodes = np.array([parent, end, first, last], dtype=np.int64)
    return _numbered(nodes, order_P, np.array(terminal, dtype=np.int64), length_P)


def _numbered(nodes: Ints, order_P: Ints, terminal: Ints, length_P: Ints) -> Prefixes:
    """The same nodes [4, N] with parents before children, neighbours in order of the prompts."""
    parent, end, first, last = nodes
    by_depth = np.lexsort((first, end))
    place = np.empty_like(by_depth)
    place[by_depth] = np.arange(len(by_depth))
    terminal_P = np.empty_like(terminal)
    terminal_P[order_P] = place[terminal]
    return Prefixes(
        parent_N=place[parent[by_depth]],
        end_N=end[by_depth],
        first_N=first[by_depth],
        last_N=last[by_depth],
        order_P=order_P,
        terminal_P=terminal_P,
        length_P=length_P,
    )
