"""Atomic directories: complete or absent, and nothing of an unfinished one stays."""

import json
import os

import pytest

from fledgling.record.atomic_directory import (
    MANIFEST,
    atomic_directory,
    describe_files,
    make_temporary_directory,
    write_manifest,
)


def write_file(directory, text):
    (directory / "content.txt").write_text(text)
    write_manifest(directory, json.dumps(describe_files(directory)))


def test_a_directory_appears_when_the_block_ends(tmp_path):
    final = tmp_path / "a"
    with atomic_directory(final) as temporary:
        write_file(temporary, "one")
        assert not final.exists() and temporary.parent == tmp_path
    assert os.listdir(tmp_path) == ["a"]
    assert json.loads((final / MANIFEST).read_text())["content.txt"]["bytes"] == 3


def test_a_block_that_raises_leaves_the_directory_as_it_was(tmp_path):
    final = tmp_path / "a"
    with atomic_directory(final) as temporary:
        write_file(temporary, "one")
    with pytest.raises(KeyError), atomic_directory(final) as temporary:
        write_file(temporary, "two")
        raise KeyError
    assert os.listdir(tmp_path) == ["a"] and (final / "content.txt").read_text() == "one"


def test_a_directory_is_replaced(tmp_path):
    final = tmp_path / "a"
    for text in ("one", "two"):
        with atomic_directory(final) as temporary:
            write_file(temporary, text)
    assert os.listdir(tmp_path) == ["a"] and (final / "content.txt").read_text() == "two"


def test_a_directory_with_content_is_not_replaced_unless_allowed(tmp_path):
    final = tmp_path / "a"
    final.mkdir()
    (final / "thesis.txt").write_text("keep")
    with pytest.raises(OSError, match="a"), atomic_directory(final, replace=False) as temporary:
        write_file(temporary, "one")
    assert os.listdir(tmp_path) == ["a"] and os.listdir(final) == ["thesis.txt"]


def test_leftovers_of_killed_processes_are_deleted_and_those_of_other_names_stay(tmp_path):
    for name in (".tmp-a-1", ".tmp-a-22", ".tmp-a-b-1"):
        (tmp_path / name).mkdir()
    temporary = make_temporary_directory(tmp_path / "a")
    assert sorted(os.listdir(tmp_path)) == sorted([temporary.name, ".tmp-a-b-1"])


def test_a_directory_called_old_is_not_touched(tmp_path):
    (tmp_path / "a.old").mkdir()
    for text in ("one", "two"):
        with atomic_directory(tmp_path / "a") as temporary:
            write_file(temporary, text)
    assert sorted(os.listdir(tmp_path)) == ["a", "a.old"]
