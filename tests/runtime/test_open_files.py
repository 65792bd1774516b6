"""The limit of open files is raised for what is open and what is about to be opened."""

import pytest

from fledgling.config import UserError
from fledgling.runtime import open_files
from fledgling.runtime.open_files import raise_open_file_limit

resource = pytest.importorskip("resource")


@pytest.mark.parametrize(
    ("soft", "hard", "raised"),
    [
        (1024, 4096, 1812),  # 700 open, 600 more, 512 of room
        (1812, 4096, None),  # high enough
        (1024, 1500, 1500),  # less room than wanted
        (1024, resource.RLIM_INFINITY, 1812),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, None),
    ],
)
def test_the_limit_counts_what_is_open_already(soft, hard, raised, monkeypatch):
    chosen = []
    monkeypatch.setattr(open_files, "count_open_files", lambda: 700)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: chosen.append(limits))
    raise_open_file_limit(600, "300 shards")
    assert chosen == ([(raised, hard)] if raised else [])


def test_a_hard_limit_that_is_too_low_is_one_line(monkeypatch):
    monkeypatch.setattr(open_files, "count_open_files", lambda: 700)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, 1320))
    expected = "300 shards need 600 open files next to 700 that are open, 1,320 are allowed: .* ulimit -Hn 1812"
    with pytest.raises(UserError, match=expected):
        raise_open_file_limit(600, "300 shards")


def test_open_files_are_counted(tmp_path):
    before = open_files.count_open_files()
    with open(tmp_path / "a", "w"), open(tmp_path / "b", "w"):
        assert not before or open_files.count_open_files() == before + 2
