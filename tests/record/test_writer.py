"""The background writer: one job at a time, and errors are raised in the thread that waits."""

import threading

import pytest

from fledgling.config import UserError
from fledgling.record.writer import BackgroundWriter
from tests.waits import WAIT_SECONDS


def test_a_job_runs_in_the_background_and_the_next_one_waits_for_it():
    go, order, writer = threading.Event(), [], BackgroundWriter()

    def slow_job():
        assert go.wait(WAIT_SECONDS)
        order.append("first")

    writer.start(slow_job)
    assert writer.busy and order == [], "start has returned, the job has not"
    threading.Timer(0.05, go.set).start()
    writer.start(lambda: order.append("second"))
    assert order[0] == "first"
    writer.wait()
    assert order == ["first", "second"] and not writer.busy and writer.last_job_seconds > 0
    writer.wait()


def test_the_error_of_a_job_is_raised_once_in_the_thread_that_waits():
    writer, reached = BackgroundWriter(), []

    def failing_job():
        raise UserError("no room")

    writer.start(failing_job)
    with pytest.raises(UserError, match="no room"):
        writer.start(lambda: reached.append(1))
    assert reached == [] and not writer.failed
    writer.start(failing_job)
    while writer.busy:
        pass
    assert writer.failed
    with pytest.raises(UserError, match="no room"):
        writer.wait()
    writer.wait()
    assert not writer.failed and writer.last_job_seconds == 0
