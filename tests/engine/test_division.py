"""Tasks are cut so that threads end together, and so that every query sees a key of every piece."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.engine.division import LEAST, Task, divided


def cuts(keys: int, heads: int, threads: int) -> list[tuple[int, int]]:
    """The pieces of a single task."""
    tasks_n5 = divided([Task(0, 0, keys, keys)], heads, threads).tasks_n5
    return sorted((begin, end) for _, _, begin, end, _ in tasks_n5.tolist())


def test_three_heads_on_two_threads_read_in_halves() -> None:
    assert cuts(1024, 3, 2) == [(0, 512), (512, 1024)]
    assert cuts(1024, 2, 2) == cuts(1024, 3, 1) == [(0, 1024)]
    assert cuts(2 * LEAST - 1, 3, 2) == [(0, 2 * LEAST - 1)]  # too few to share


def test_three_heads_on_eight_threads_read_in_fifths() -> None:
    """15 pieces keep 8 threads busy for two rounds, but for one that waits."""
    assert cuts(1000, 3, 8) == [(k, k + 200) for k in range(0, 1000, 200)]


def test_many_tasks_stay_whole() -> None:
    found = divided([Task(i, 0, 5000, 5000) for i in range(6)], 3, 2)
    assert found.places == len(found.joins_m4) == 0
    assert found.tasks_n5[:, 4].tolist() == [-1] * 6


@st.composite
def many(draw: st.DrawFn) -> list[Task]:
    tasks = []
    for item in range(draw(st.integers(1, 6))):
        common = draw(st.integers(1, 3000))
        tasks.append(Task(item, 32 * item, common, common + draw(st.integers(0, 600))))
    return tasks


@given(many(), st.integers(1, 8), st.integers(1, 16))
def test_pieces_cover_all_keys_once(tasks: list[Task], heads: int, threads: int) -> None:
    found = divided(tasks, heads, threads)
    kept = []
    for task in tasks:
        own = [row for row in found.tasks_n5.tolist() if row[0] == task.item]
        own.sort(key=lambda row: row[2])
        assert {first for _, first, *_ in own} == {task.first}
        assert [begin for _, _, begin, _, _ in own] == [0, *(end for _, _, _, end, _ in own[:-1])]
        assert own[-1][3] == task.most
        assert all(begin < task.common for _, _, begin, _, _ in own), "a query sees none of it"
        places = [place for *_, place in own]
        if len(own) == 1:
            assert places == [-1]
            continue
        assert all(end - begin >= LEAST for _, _, begin, end, _ in own)
        assert [task.item, task.first, places[0], len(own)] in found.joins_m4.tolist()
        kept += places
    assert sorted(kept) == list(range(found.places))
    sizes = (found.tasks_n5[:, 3] - found.tasks_n5[:, 2]).tolist()
    assert sizes == sorted(sizes, reverse=True)
