"""The file of a module that a user names is found without importing it."""

import sys

import pytest

from fledgling.runtime.user_code import find_module_file


@pytest.mark.parametrize("name", ["judge", "package.judge"])
def test_the_file_of_a_module_is_found_and_nothing_is_imported(name, tmp_path, monkeypatch):
    file = (tmp_path / name.replace(".", "/")).with_suffix(".py")
    file.parent.mkdir(exist_ok=True)
    for path in {file, file.parent / "__init__.py"} if "." in name else {file}:
        path.write_text("raise RuntimeError('imported')")
    monkeypatch.chdir(tmp_path)
    assert find_module_file(name) == file
    assert not {name, "package"} & set(sys.modules)


@pytest.mark.parametrize("name", ["nothere", "nothere.judge", "sys", "json.nothere", ""])
def test_a_module_without_a_file_is_none(name):
    assert find_module_file(name) is None
