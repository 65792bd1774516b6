"""Stop signals: the first requests a stop, the second ends the process at once, whatever the main thread does."""

import os
import signal
import subprocess
import sys
import time

import pytest

from fledgling.runtime.signals import STOP_SIGNALS, catch_stop_signals

BUSY = """
import ctypes, sys, time
from fledgling.runtime import signals
from fledgling.runtime.signals import catch_stop_signals
if len(sys.argv) > 2:
    signals.SHORT_ECHO_WINDOW = float(sys.argv[2])
with catch_stop_signals() as stop_requested:
    print("ready", flush=True)
    while not stop_requested():
        time.sleep(0.01)
    print("requested", flush=True)
    seconds = float(sys.argv[1])
    while seconds > 0:
        seconds = ctypes.CDLL(None).sleep(int(seconds))  # a call that no Python handler interrupts
"""


def start_process(seconds, *window, **variables):
    child = subprocess.Popen(
        [sys.executable, "-c", BUSY, str(seconds), *map(str, window)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | variables,
    )
    assert child.stdout.readline() == "ready\n"
    return child


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_signal_requests_a_stop_and_the_second_ends_the_process_at_once(number):
    child = start_process(300)
    child.send_signal(number)
    assert child.stdout.readline() == "requested\n"
    time.sleep(0.3)  # longer than an echo
    began = time.monotonic()
    child.send_signal(number)
    assert child.wait(timeout=60) == 128 + number and time.monotonic() - began < 50
    assert child.stderr.read() == f"stopped at once by a second {signal.Signals(number).name}\n"


def test_two_signals_at_once_as_timeout_sends_them_are_one_request():
    child = start_process(1, 60)
    for _ in range(2):
        child.send_signal(signal.SIGTERM)
        time.sleep(0.02)
    assert child.wait(timeout=60) == 0 and child.stdout.read() == "requested\n"


def test_in_a_launched_rank_an_echo_is_no_second_signal():
    child = start_process(3, WORLD_SIZE="2", RANK="0")
    for _ in range(3):
        child.send_signal(signal.SIGUSR1)
    assert child.stdout.readline() == "requested\n"
    assert child.wait(timeout=60) == 0
    child = start_process(300, WORLD_SIZE="2", RANK="0")
    child.send_signal(signal.SIGTERM)
    assert child.stdout.readline() == "requested\n"
    time.sleep(1.5)
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=60) == 128 + signal.SIGTERM


def test_the_previous_handlers_are_restored():
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with catch_stop_signals() as stop_requested:
        assert not stop_requested()
        os.kill(os.getpid(), signal.SIGUSR1)
        deadline = time.monotonic() + 60
        while not stop_requested():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1
