"""A cache folder that cannot be written, also for root, whom permissions do not stop."""

import errno
import os

from fledgling.record import user_cache


def fail_cache_writes(monkeypatch) -> None:
    """Has every write to the user's cache fail."""

    def fail(path, content) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(user_cache, "write_file", fail)
