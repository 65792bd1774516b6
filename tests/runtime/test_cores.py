"""Cores are counted by affinity and quota, on machines that have neither too."""

import os

import pytest

from fledgling.runtime import cgroup, cores


@pytest.mark.parametrize(
    ("content", "expected"), [("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("max 100000", 5)]
)
def test_a_quota_limits_the_cores(content, expected, tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text(content)
    monkeypatch.setattr(cgroup, "MOUNT", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(5)), raising=False)
    assert cores.count_cores() == expected


@pytest.mark.parametrize(("quota", "expected"), [("250000", 3), ("-1", 5)])
def test_a_quota_of_version_1_limits_the_cores(quota, expected, tmp_path, monkeypatch):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    monkeypatch.setattr(cgroup, "MOUNT", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(5)), raising=False)
    assert cores.count_cores() == expected


def test_a_machine_without_affinity_counts_its_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroup, "MOUNT", tmp_path)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert cores.count_cores() == 3
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores.count_cores() == 1
