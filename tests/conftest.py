"""Settings of every test: no time limit on an example of hypothesis, because a busy machine would fail it, and speeds
that were measured on this machine, and what its person typed, are neither read nor written."""

import os

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:  # beside other workers: one thread each, and none that waits busily
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

settings.register_profile("fledgling", deadline=None)
settings.load_profile("fledgling")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Cache and state are folders of this session's; `plan` and `chat` find in them what a test put there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLEDGLING_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield
