"""One thread, no measured peak, and a folder with the smallest recipe, pretrained."""

from pathlib import Path

import pytest

from fledgling.cli import main
from tests.fast_run import write_recipe


@pytest.fixture(autouse=True)
def fast(one_thread_known_peak):
    pass


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A folder with the smallest recipe, pretrained, without the text of exams."""
    folder = tmp_path_factory.mktemp("settings")
    (folder / "other.txt").write_text("".join(f"{n} other words than those, as {n * n} shows. " for n in range(900)))
    assert main(["train", "pretrain", str(write_recipe(folder)), "--set=sft.mixture={}"]) == 0
    return folder
