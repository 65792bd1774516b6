"""The launcher: exit codes of several ranks, and counts that are out of range. test_watchdog.py starts real ranks."""

import pytest

from fledgling.config import UserError
from fledgling.runtime.exit_codes import FAILED, FAULT, STOPPED
from fledgling.runtime.launch import _combine_exit_codes, launch_ranks


def test_a_code_that_forbids_a_restart_wins_and_a_signal_counts_as_a_fault():
    assert _combine_exit_codes([0, 0]) == 0
    assert _combine_exit_codes([-9, 0]) == FAULT
    assert _combine_exit_codes([FAULT, STOPPED, -9]) == STOPPED
    assert _combine_exit_codes([-9, FAILED]) == FAILED


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"nproc_per_node": 0}, "--gpus 0"),
        ({"nproc_per_node": 1, "restarts": -1}, "--restarts -1"),
        ({"nproc_per_node": 1, "nodes": 2}, "expected HOST:PORT"),
    ],
)
def test_counts_out_of_range_are_rejected(options, word):
    with pytest.raises(UserError, match=word):
        launch_ranks(device="cpu", command=["-c", ""], **options)
