"""Ctrl-C while a module is imported, which extension modules swallow, ends what runs after the import."""

import importlib
import os
import signal
import sys
import time

import pytest

from fledgling.runtime import interrupts
from fledgling.runtime.interrupts import interrupt_between_imports

SWALLOWING = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):  # the handler runs between two instructions
        pass
except KeyboardInterrupt:
    swallowed = True
else:
    swallowed = False
"""


@pytest.fixture
def handler():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupt_between_imports()
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_within_an_import_is_raised_after_it(tmp_path, monkeypatch, handler):
    (tmp_path / "swallows_interrupts.py").write_text(SWALLOWING)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        module = importlib.import_module("swallows_interrupts")
        time.sleep(10)
    assert not module.swallowed and sys.modules.pop("swallows_interrupts") is module


def test_an_import_that_does_not_end_is_interrupted(tmp_path, monkeypatch, handler):
    monkeypatch.setattr(interrupts, "LONGEST_IMPORT", 0.2)
    (tmp_path / "takes_long.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        importlib.import_module("takes_long")


def test_an_interrupt_elsewhere_is_raised_at_once(handler):
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)


def test_the_handler_of_another_program_stays():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupt_between_imports()
    assert signal.signal(signal.SIGINT, before) is signal.SIG_IGN
