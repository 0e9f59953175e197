"""The prefix tree against a plain model: sets of prefixes, counted slots, pins."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal.engine.pool import ExtentAllocator
from shoal.engine.tree import Node, PrefixTree

PROMPTS = st.lists(st.integers(0, 2), min_size=1, max_size=12)


def tokens_of(node: Node) -> list[int]:
    return [token for each in node.path() for token in each.tokens]


def fill(node: Node) -> None:
    for each in node.path():
        each.filled = len(each.tokens)


def test_shared_beginnings_are_stored_once() -> None:
    slots = ExtentAllocator(100)
    tree = PrefixTree(slots)
    first = tree.insert([1, 2, 3, 4, 5], "")
    second = tree.insert([1, 2, 3, 9], "")
    third = tree.insert([1, 2], "")
    assert first and second and third
    assert slots.free == 100 - 6
    assert [len(node.tokens) for node in first.path()] == [2, 1, 2]
    assert tokens_of(second) == [1, 2, 3, 9]
    assert [node.position for node in first.path()] == [0, 2, 3]
    assert tree.match([1, 2, 3, 4, 8], "") == 4


def test_salts_never_meet() -> None:
    tree = PrefixTree(ExtentAllocator(100))
    tree.insert([1, 2, 3], "a")
    assert tree.match([1, 2, 3], "a") == 3
    assert tree.match([1, 2, 3], "b") == 0


def test_least_recently_used_leaves_make_room() -> None:
    tree = PrefixTree(ExtentAllocator(10))
    for prompt in ([1, 1, 1, 1], [2, 2, 2, 2]):
        node = tree.insert(prompt, "")
        assert node
        fill(node)
        tree.unpin(node)
    again = tree.insert([1, 1, 1, 1], "")
    assert again
    tree.unpin(again)
    assert tree.insert([3, 3, 3, 3, 3], "")
    assert tree.match([1, 1, 1, 1], "") == 4
    assert tree.match([2, 2, 2, 2], "") == 0


def test_pinned_nodes_are_never_evicted() -> None:
    tree = PrefixTree(ExtentAllocator(6))
    node = tree.insert([1, 2, 3, 4], "")
    assert node
    fill(node)
    assert tree.insert([5, 6, 7], "") is None
    assert tree.match([1, 2, 3, 4], "") == 4
    tree.unpin(node)
    assert tree.insert([5, 6, 7], "") is not None


def test_an_answer_is_found_by_the_next_turn() -> None:
    tree = PrefixTree(ExtentAllocator(50))
    prompt = tree.insert([1, 2], "")
    assert prompt
    fill(prompt)
    tail = tree.tail(prompt, 8)
    assert tail
    tail.tokens += [7, 8, 9]
    tail.filled = 2  # the last token of an answer is never computed
    tree.adopt(tail)
    tree.unpin(tail)
    assert tree.match([1, 2, 7, 8, 9], "") == 4
    assert tree.free == 50 - 4


def test_what_was_not_computed_is_forgotten_with_its_last_user() -> None:
    tree = PrefixTree(ExtentAllocator(50))
    node = tree.insert(list(range(10)), "")
    assert node
    node.filled = 6
    tree.unpin(node)
    assert tree.match(list(range(10)), "") == 6
    assert tree.free == 50 - 6


class TreeMachine(RuleBasedStateMachine):
    """Random inserts, tails, fills and releases over a small memory."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = ExtentAllocator(40)
        self.tree = PrefixTree(self.slots)
        self.held: list[tuple[list[int], Node]] = []

    @rule(prompt=PROMPTS)
    def insert(self, prompt: list[int]) -> None:
        node = self.tree.insert(prompt, "")
        if node is None:
            assert len(prompt) > self.tree.free + self.tree.evictable
            return
        assert tokens_of(node) == prompt
        self.held.append((prompt, node))

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 99), answer=PROMPTS)
    def answer(self, which: int, answer: list[int]) -> None:
        index = which % len(self.held)
        prompt, node = self.held[index]
        fill(node)
        tail = self.tree.tail(node, len(answer))
        if tail is not None:
            tail.tokens += answer[: tail.capacity]
            tail.filled = len(tail.tokens) - 1
            self.tree.adopt(tail)
            self.held[index] = (prompt + list(tail.tokens), tail)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 99), filled=st.booleans())
    def release(self, which: int, filled: bool) -> None:
        _, node = self.held.pop(which % len(self.held))
        if filled:
            fill(node)
        self.tree.unpin(node)

    @invariant()
    def held_prompts_are_whole(self) -> None:
        for tokens, node in self.held:
            assert tokens_of(node) == tokens
            assert all(each.pins for each in node.path())

    @invariant()
    def no_slot_has_two_owners_and_none_is_lost(self) -> None:
        nodes = set(self.tree.nodes()) | {each for _, node in self.held for each in node.path()}
        owned = [slot for n in nodes for slot in range(n.start, n.start + n.capacity)]
        assert len(owned) == len(set(owned)) == self.slots.capacity - self.slots.free

    @invariant()
    def evictable_counts_the_unpinned(self) -> None:
        unpinned = sum(node.capacity for node in self.tree.nodes() if not node.pins)
        assert self.tree.evictable == unpinned

    @invariant()
    def findable_nodes_are_counted(self) -> None:
        assert self.tree._findable == len(list(self.tree.nodes()))

    def teardown(self) -> None:
        for _, node in self.held:
            self.tree.unpin(node)
        self.tree._evict(self.slots.capacity)
        assert self.slots.free == self.slots.capacity


TreeMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=30)
TestTreeMachine = TreeMachine.TestCase


def test_salts_that_nothing_is_kept_under_are_forgotten() -> None:
    tree = PrefixTree(ExtentAllocator(64))
    kept = tree.insert([1, 2, 3], "kept")
    assert kept is not None
    for number in range(5000):
        end = tree.insert([7, number], f"salt {number}")
        assert end is not None
        tree.unpin(end)
    assert len(tree._roots) <= 2048 and tree.match([1, 2, 3], "kept") == 3


def test_short_nodes_do_not_outgrow_what_they_keep() -> None:
    tree = PrefixTree(ExtentAllocator(16_384))  # 2,048 nodes, of eight slots on average
    kept = tree.insert([1, 2, 3], "")
    assert kept is not None
    fill(kept)
    for number in range(6000):
        end = tree.insert([7, number], "")
        assert end is not None
        fill(end)
        tree.unpin(end)
    assert 1024 < len(list(tree.nodes())) <= 2048 + 3
    assert tree.match([7, 5999], "") == 2 and tree.match([7, 0], "") == 1
    assert tree.match([1, 2, 3], "") == 3  # pinned nodes stay
