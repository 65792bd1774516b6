"""The made-up run that the tests of the report share."""

from pathlib import Path

import pytest

from .synthetic_run import make_run


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    """A finished run of four stages. Tests that change it make their own."""
    return make_run(tmp_path_factory.mktemp("runs") / "made-up", scale=0.1)
