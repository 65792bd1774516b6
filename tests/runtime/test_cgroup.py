"""The groups of a process are found in both versions, with all their parents."""

import pytest

from fledgling.runtime import cgroup
from fledgling.runtime.cgroup import list_group_folders, read_number


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Returns a function that sets what /proc/self/cgroup has."""
    monkeypatch.setattr(cgroup, "MOUNT", tmp_path)
    monkeypatch.setattr(cgroup, "OWN_GROUPS", tmp_path / "own")
    return (tmp_path / "own").write_text


def test_a_container_and_a_machine_without_groups_have_the_root_of_both_versions(groups, tmp_path):
    assert list_group_folders("memory") == [tmp_path, tmp_path / "memory"], "no such file"
    groups("0::/\n")
    assert list_group_folders("memory") == [tmp_path, tmp_path / "memory"]
    groups("0::/../outside\ntorn\n")
    assert list_group_folders("memory") == [tmp_path, tmp_path / "memory"]


def test_a_batch_job_has_the_limits_of_its_parents(groups, tmp_path):
    groups("0::/system.slice/job_7/step_0\n")
    names = ["system.slice/job_7/step_0", "system.slice/job_7", "system.slice", ""]
    assert list_group_folders("memory") == [*(tmp_path / name for name in names), tmp_path / "memory"]
    groups("4:cpu,cpuacct:/docker/ab\n3:memory:/docker/cd:e\n0::/\n")
    names = ["", "memory/docker/cd:e", "memory/docker", "memory"]
    assert list_group_folders("memory") == [tmp_path / name for name in names]
    assert list_group_folders("cpu")[1] == tmp_path / "cpu/docker/ab"


def test_a_number_is_read_with_its_key_or_alone(tmp_path):
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 70\n")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("123\n")
    assert read_number(tmp_path / "memory.stat", "inactive_file") == 70
    assert read_number(tmp_path / "memory.current") == 123
    assert read_number(tmp_path / "memory.max") is None and read_number(tmp_path / "no") is None
