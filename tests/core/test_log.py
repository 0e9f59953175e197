"""The event log: append-only, idempotent, and whole after whatever happens to its process."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.errors import LogError
from shoal.core.log import FORMAT, EventLog
from shoal.core.records import Message, Step, Usage

bodies = st.dictionaries(
    st.text(max_size=8), st.none() | st.integers() | st.text(max_size=20), max_size=3
)


def step(i: int, size: int = 0) -> Step:
    return Step(f"r/{i}/a", "a", i, (Message("user", "x" * size),), f"said {i}", usage=Usage(i, 1))


def append_steps_for_ever(log: EventLog) -> None:
    for i in itertools.count():
        log.append_step(step(i, 1000))


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["x", "y"]), bodies)))
def test_the_first_event_of_a_key_stays_and_order_is_kept(
    appends: list[tuple[str, str, dict[str, object]]],
) -> None:
    expected: dict[str, tuple[str, dict[str, object]]] = {}
    with EventLog() as log:
        for key, kind, body in appends:
            event = log.append(kind, body, key=key)
            expected.setdefault(key, (kind, body))
            assert (event.kind, event.body) == expected[key]
        events = list(log.events())
        assert [(e.key, (e.kind, e.body)) for e in events] == list(expected.items())
        assert [e.seq for e in events] == sorted(e.seq for e in events)
        for kind in ("x", "y"):
            assert [e for e in events if e.kind == kind] == list(log.events(kind))
        if events:
            assert list(log.events(after=events[0].seq)) == events[1:]
            assert log.get(events[0].key) == events[0]
        assert log.get("nobody") is None


def test_steps_come_back_as_they_were_and_only_once(tmp_path: Path) -> None:
    with EventLog(tmp_path / "log.sqlite") as log:
        for i in (0, 1, 0, 2, 1):
            log.append_step(step(i))
    with EventLog(tmp_path / "log.sqlite") as log:
        assert list(log.steps()) == [step(0), step(1), step(2)]


def test_an_episode_is_read_from_run_steps_and_end() -> None:
    with EventLog() as log:
        assert log.episode().outcome == "open"
        log.append("run", {"id": "r", "task": "why?", "seed": 3})
        log.append_step(step(0))
        log.append("end", {"result": "because", "outcome": "done"})
        episode = log.episode()
    assert (episode.id, episode.task, episode.seed) == ("r", "why?", 3)
    assert (episode.result, episode.outcome) == ("because", "done")
    assert episode.steps == (step(0),)


def test_pauses_before_a_resumption_are_no_working_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 103.0, 900.0, 902.5])
    monkeypatch.setattr(time, "time", lambda: next(clock))
    with EventLog() as log:
        for kind in ("run", "note", "resume", "note"):
            log.append(kind, {})
        assert log.seconds() == 5.5


def test_threads_append_without_losing_events() -> None:
    with EventLog() as log:
        threads = [
            threading.Thread(
                target=lambda t=t: [log.append("n", {}, key=f"{t}.{i}") for i in range(50)]
            )
            for t in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({e.key for e in log.events()}) == 200


def test_a_reader_in_another_process_sees_what_was_appended(tmp_path: Path) -> None:
    with EventLog(tmp_path / "log.sqlite") as log:
        log.append_step(step(0))
        with EventLog(tmp_path / "log.sqlite") as reader:
            assert list(reader.steps()) == [step(0)]


def test_a_log_of_a_newer_format_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    with EventLog(path) as log:
        log.append_step(step(0))
    db = sqlite3.connect(path)
    db.executescript(f"DROP TABLE event; PRAGMA user_version={FORMAT + 1}")
    with pytest.raises(LogError, match=r"newer than this version of shoal.*upgrade"):
        EventLog(path)
    assert db.execute("PRAGMA user_version").fetchone() == (FORMAT + 1,)
    assert db.execute("SELECT name FROM sqlite_master WHERE name = 'event'").fetchall() == []
    db.close()


@pytest.mark.parametrize(
    "content", [b"not a database, certainly" * 100, b"SQLite format 3\x00junk"]
)
def test_a_file_that_is_no_log_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "log.sqlite").write_bytes(content)
    with pytest.raises(LogError, match=r"Cannot open the event log"):
        EventLog(tmp_path / "log.sqlite")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LogError, match=r"Cannot open the event log"):
        EventLog(tmp_path / "file" / "log.sqlite")


def test_text_that_is_no_unicode_is_refused_and_nothing_is_lost() -> None:
    with EventLog() as log:
        log.append_step(step(0))
        with pytest.raises(LogError, match=r"Cannot write"):
            log.append("note", {"text": "\ud800"})
        assert list(log.steps()) == [step(0)]


def test_a_full_disk_is_said_and_what_was_logged_is_safe(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    with EventLog(path) as log:
        log._db.execute("PRAGMA max_page_count=40")
        with pytest.raises(LogError, match=r"Cannot write to the event log.*safe.*resumed"):
            append_steps_for_ever(log)
        kept = len(list(log.steps()))
        assert 0 < kept < 1000
        assert [s.superstep for s in log.steps()] == list(range(kept))
    with EventLog(path) as log:
        assert [s.superstep for s in log.steps()] == list(range(kept))
        log.append_step(step(kept, 1000))  # there is room again: the run goes on
        assert len(list(log.steps())) == kept + 1


FULL_DISK = """
import resource, sys
from pathlib import Path
from shoal.core.errors import LogError
from shoal.core.log import EventLog
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = EventLog(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
for i in range(10_000):
    try:
        log.append("note", {"i": i, "text": "x" * 500}, key=str(i))
    except LogError as error:
        print(i, error)
        break
"""


def test_a_disk_that_fills_up_under_a_process_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=True
    )
    kept, _, sentence = done.stdout.partition(" ")
    assert "what was logged before is safe" in sentence
    with EventLog(path) as log:
        assert [e.body["i"] for e in log.events()] == list(range(int(kept)))


WRITER = """
import sys
from pathlib import Path
from shoal.core.log import EventLog
log = EventLog(Path(sys.argv[1]))
start = len(list(log.events()))
print("ready", flush=True)
for i in range(start, 1_000_000):
    log.append("note", {"i": i, "text": "x" * (i % 700)}, key=str(i))
    sys.stdout.write(f"{i}\\n")
    sys.stdout.flush()
"""


def kill_at_random_moments(path: Path, times: int, seed: int) -> None:
    """Each time: the log opens, is a gap-free beginning, and holds all that was acknowledged."""
    draws = random.Random(seed)
    for _ in range(times):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(draws.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        rest = process.communicate()[0]
        told = [int(line) for line in rest.splitlines(keepends=True) if line.endswith("\n")]
        with EventLog(path) as log:
            held = [event.body["i"] for event in log.events()]
            assert held == list(range(len(held)))
            assert not told or told[-1] < len(held)
            assert all(json.dumps(event.body) for event in log.events())


def test_kill_9_leaves_a_log_that_opens_and_lacks_nothing(tmp_path: Path) -> None:
    kill_at_random_moments(tmp_path / "log.sqlite", 6, seed=1)


@pytest.mark.slow
def test_kill_9_at_many_moments(tmp_path: Path) -> None:
    kill_at_random_moments(tmp_path / "log.sqlite", 60, seed=2)
