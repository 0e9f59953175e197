"""Ids sort by the time they were made and do not collide."""

from __future__ import annotations

import threading
import time

from shoal.core import ids


def test_ids_of_one_process_sort_by_creation() -> None:
    made = [ids.new_id() for _ in range(2000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_an_id_is_sixteen_characters_safe_in_paths_and_keys() -> None:
    made = ids.new_id()
    assert len(made) == 16
    assert made.isalnum()
    assert made == made.lower()


def test_an_id_tells_when_it_was_made() -> None:
    before = time.time_ns() // 1_000_000
    made = ids.new_id()
    stamp = 0
    for char in made[:9]:
        stamp = stamp * 32 + "0123456789abcdefghjkmnpqrstvwxyz".index(char)
    assert 0 <= stamp - before < 60_000  # ids made in a burst run ahead of the clock


def test_threads_get_different_ids() -> None:
    made: list[str] = []
    threads = [
        threading.Thread(target=lambda: made.extend(ids.new_id() for _ in range(500)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 2000
