import threading

from shoal.engine.compute import ComputeThread


def test_a_future_that_is_cancelled_takes_its_function_back_and_stops_nobody() -> None:
    thread, begun, go_on = ComputeThread(), threading.Event(), threading.Event()

    def slow() -> str:
        begun.set()
        assert go_on.wait(5)
        return "slow"

    ran: list[str] = []
    first = thread.future(slow)
    second = thread.future(lambda: ran.append("second"))
    third = thread.future(lambda: "third")
    assert begun.wait(5) and not first.cancel()  # too late: it runs
    assert second.cancel()
    go_on.set()
    assert (first.result(5), third.result(5)) == ("slow", "third")
    assert not ran
