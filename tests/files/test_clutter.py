"""What systems and editors leave in a folder is distinguished from what a person or a program has put there."""

import pytest

from fledgling.files.clutter import is_clutter


@pytest.mark.parametrize(
    "name",
    [
        *(".DS_Store", "._model.safetensors", "Thumbs.db", "desktop.ini", ".nfs0000a1", "@eaDir"),
        *("recipe.toml~", ".recipe.toml.swp", "#recipe.toml#", ".#recipe.toml", "state.json.bak"),
    ],
)
def test_what_systems_and_editors_leave_is_clutter(name):
    assert is_clutter(name)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "best", "README.md", "step-00000004", ".tmp-step-00000004-9", ".sft.replaced", "lock"]
)
def test_other_names_are_not(name):
    assert not is_clutter(name)
