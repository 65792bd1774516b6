"""A trained run that the tests of several commands share."""

import shutil
from pathlib import Path

import pytest

from fledgling.train.run import run_stage
from tests.all_stages import make_all_stages_recipe
from tests.made_up_sets import write_public_sets


@pytest.fixture(scope="session")
def original_run(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("evaluated")
    run_stage(make_all_stages_recipe(folder, **{"stages": '["pretrain"]', "pretrain.steps": 2}), "pretrain", quiet=True)
    return folder / "run", write_public_sets(folder / "data")


@pytest.fixture
def trained_run(original_run, tmp_path) -> tuple[Path, Path]:
    """A copy of a pretrained run, and a data root with small public sets."""
    return shutil.copytree(original_run[0], tmp_path / "run"), original_run[1]


@pytest.fixture
def run_command(capsys):
    """Returns a function that runs `fledgling WORDS` and returns (exit code, stdout, stderr)."""
    from fledgling.cli import main

    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run
