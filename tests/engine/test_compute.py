import subprocess
import sys
import threading

import pytest

from patience import LONG
from shoal.engine.compute import ComputeThread


def test_a_future_that_is_cancelled_takes_its_function_back_and_stops_nobody() -> None:
    thread, begun, go_on = ComputeThread(), threading.Event(), threading.Event()

    def slow() -> str:
        begun.set()
        assert go_on.wait(LONG)
        return "slow"

    ran: list[str] = []
    first = thread.future(slow)
    second = thread.future(lambda: ran.append("second"))
    third = thread.future(lambda: "third")
    assert begun.wait(LONG) and not first.cancel()  # too late: it runs
    assert second.cancel()
    go_on.set()
    assert (first.result(LONG), third.result(LONG)) == ("slow", "third")
    assert not ran


TEAMS = """
import os, torch
from shoal.engine.compute import compute, dismiss
torch.set_num_threads(3)
count = lambda: len(os.listdir("/proc/self/task"))
before = count()
torch.ones(1 << 21).exp()
compute.call(lambda: torch.ones(1 << 21).exp())
teams = count()
dismiss()
compute.call(dismiss)
print(teams - before, count() - before)
print(torch.ones(1 << 21).sum().item())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_a_thread_that_loaded_a_model_sends_its_workers_home() -> None:
    done = subprocess.run([sys.executable, "-c", TEAMS], capture_output=True, text=True, check=True)
    # two workers for each of two teams and the compute thread; one team and the thread are left
    assert done.stdout.split() == ["5", "3", "2097152.0"]
