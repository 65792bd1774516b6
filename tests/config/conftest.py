"""A recipe file of a user."""

import pytest


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes a recipe file and returns its path."""

    def write(text: str):
        path = tmp_path / "own.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write
