"""The writer: beside the caller, one job at a time, errors where they are waited for."""

import threading

import pytest

from fledgling.config import UserError
from fledgling.record.writer import BackgroundWriter


def test_a_job_runs_beside_and_the_next_one_waits_for_it():
    go, order, writer = threading.Event(), [], BackgroundWriter()

    def slow():
        assert go.wait(10)
        order.append("first")

    writer.start(slow)
    assert writer.busy and order == [], "start has returned, the job has not"
    threading.Timer(0.05, go.set).start()
    writer.start(lambda: order.append("second"))
    assert order[0] == "first"
    writer.wait()
    assert order == ["first", "second"] and not writer.busy and writer.last_job_seconds > 0
    writer.wait()


def test_what_a_job_ran_into_is_raised_once_where_it_is_waited_for():
    writer, reached = BackgroundWriter(), []

    def full():
        raise UserError("no room")

    writer.start(full)
    with pytest.raises(UserError, match="no room"):
        writer.start(lambda: reached.append(1))
    assert reached == [] and not writer.failed
    writer.start(full)
    while writer.busy:
        pass
    assert writer.failed
    with pytest.raises(UserError, match="no room"):
        writer.wait()
    writer.wait()
    assert not writer.failed and writer.last_job_seconds == 0
