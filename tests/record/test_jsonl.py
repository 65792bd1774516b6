"""JSON files: lines are complete, torn lines are repaired, files are replaced in one rename, errors are one line."""

import errno
import json
import math
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledgling.config import UserError
from fledgling.record import Recorder, make_write_error, read_jsonl, write_json
from fledgling.record.jsonl import JsonlWriter, format_bytes


@given(st.integers(0, 200))
def test_a_line_torn_anywhere_is_skipped_and_repaired(tmp_path_factory, length):
    path = tmp_path_factory.mktemp("torn") / "metrics.jsonl"
    content = b'{"step": 1, "loss": 2}\n{"step": 2, "loss": 1.5, "text": "\xc3\xa9"}\n'
    path.write_bytes(content[: min(length, len(content))])
    before = read_jsonl(path)
    writer = JsonlWriter(path)
    writer.append({"step": 3})
    writer.close()
    assert read_jsonl(path) == [*before, {"step": 3}]
    assert all(json.loads(line) for line in path.read_text().splitlines()), "nothing torn is left"


def test_lines_that_hold_no_object_are_skipped(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'[1]\nnull\n\xff\xfe\n{"step": 1}\n' + b"[" * 100_000 + b"\n")
    assert read_jsonl(tmp_path / "x.jsonl") == [{"step": 1}]
    assert read_jsonl(tmp_path / "absent.jsonl") == []


def test_a_full_disk_is_one_error_line_and_the_lines_before_stay(tmp_path):
    """A file size limit replaces the full disk: the write really fails, in the middle of a line."""
    script = """if True:
        import resource, sys
        from fledgling.config import UserError
        from fledgling.record import Recorder, write_json
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        recorder = Recorder(sys.argv[1], "sft", 5, quiet=True)
        try:
            for step in range(100):
                recorder.log_metrics(step, loss=1.0)
        except UserError as error:
            print(error)
        try:
            write_json(sys.argv[1] + "/done.json", "x" * 2000)
        except UserError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert "metrics.jsonl" in first and "needed" in first and "free" in first
    assert "done.json" in second
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) > 5
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl"}
    with Recorder(tmp_path, "sft", 5, quiet=True) as recorder:
        recorder.log_metrics(7)
    assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


def test_other_write_errors_name_the_path(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: .*run\.out"):
        Recorder(tmp_path / "file" / "pretrain", "pretrain", 1, quiet=True).log_metrics(1)
    error = make_write_error(tmp_path / "no" / "where", OSError(errno.ENOSPC, "x"), 3_100_000)
    assert "3.1 MB needed" in str(error) and "\n" not in str(error)


def test_write_json_replaces_in_one_rename(tmp_path):
    write_json(tmp_path / "a" / "x.json", {"v": 1, "inf": math.inf})
    assert json.loads((tmp_path / "a/x.json").read_text()) == {"v": 1, "inf": None}
    assert os.listdir(tmp_path / "a") == ["x.json"]


@pytest.mark.parametrize(
    ("count", "binary", "expected"),
    [
        (999, False, "999 bytes"),
        (1000, False, "1.0 kB"),
        (3_100_000, False, "3.1 MB"),
        (42e9, False, "42.0 GB"),
        (512, True, "0.5 KiB"),
        (3 << 20, True, "3.0 MiB"),
        (42e9, True, "39.1 GiB"),
    ],
)
def test_bytes_are_formatted_in_their_unit(count, binary, expected):
    assert format_bytes(count, binary) == expected
