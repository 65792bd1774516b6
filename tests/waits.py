"""How long tests wait for what must happen, and the waiting: a test that passes waits no longer than it must."""

import time
from collections.abc import Callable

WAIT_SECONDS = 60.0  # a pause of the machine for some seconds fails no test


def wait_for(happens: Callable[[], bool]) -> None:
    """Waits until `happens()` is true. Fails after WAIT_SECONDS."""
    end = time.monotonic() + WAIT_SECONDS
    while not happens():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)
