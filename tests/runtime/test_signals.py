"""Signals that ask a run to stop: the first asks, the second leaves at once, whatever the main thread does."""

import os
import signal
import subprocess
import sys
import time

import pytest

from fledgling.runtime.signals import STOP_SIGNALS, catch_stop_signals

BUSY = """
import ctypes, sys, time
from fledgling.runtime.signals import catch_stop_signals
with catch_stop_signals() as stop:
    print("ready", flush=True)
    while not stop():
        time.sleep(0.01)
    print("asked", flush=True)
    rest = float(sys.argv[1])
    while rest > 0:
        rest = ctypes.CDLL(None).sleep(int(rest))  # a call that no handler of Python's interrupts
"""


def started(rest, **variables):
    child = subprocess.Popen(
        [sys.executable, "-c", BUSY, str(rest)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | variables,
    )
    assert child.stdout.readline() == "ready\n"
    return child


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_asks_and_the_second_leaves_at_once(number):
    child = started(60)
    child.send_signal(number)
    assert child.stdout.readline() == "asked\n"
    began = time.monotonic()
    child.send_signal(number)
    assert child.wait(timeout=20) == 128 + number and time.monotonic() - began < 10
    assert child.stderr.read() == f"left at once after a second {signal.Signals(number).name}\n"


def test_under_an_agent_an_echo_is_no_second_one():
    child = started(3, WORLD_SIZE="2", RANK="0")
    for _ in range(3):
        child.send_signal(signal.SIGUSR1)
    assert child.stdout.readline() == "asked\n"
    assert child.wait(timeout=20) == 0
    child = started(60, WORLD_SIZE="2", RANK="0")
    child.send_signal(signal.SIGTERM)
    assert child.stdout.readline() == "asked\n"
    time.sleep(1.5)
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=20) == 128 + signal.SIGTERM


def test_handlers_are_given_back():
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with catch_stop_signals() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGUSR1)
        deadline = time.monotonic() + 10
        while not stop():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1
