"""A request is taken once, by name, and costs nothing where there is none."""

import pytest

from fledgling.config import UserError
from fledgling.record.run_requests import ACTIONS, request_action, take_actions


def test_each_request_is_taken_once_and_other_files_stay(tmp_path):
    assert take_actions(tmp_path) == frozenset()
    for action in (*ACTIONS, "stop"):
        request_action(tmp_path, action)
    (tmp_path / "requests" / "notes").touch()
    assert take_actions(tmp_path) == frozenset(ACTIONS)
    assert take_actions(tmp_path) == frozenset() and (tmp_path / "requests" / "notes").exists()


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "requests").write_text("a file")
    with pytest.raises(UserError, match="cannot write"):
        request_action(tmp_path, "stop")
    assert take_actions(tmp_path) == frozenset()
