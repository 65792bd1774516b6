"""The memory of a container is that of its group, not of the machine."""

import pytest
import torch

from fledgling.runtime import cgroup, machine_memory
from fledgling.runtime.device_memory import get_usable_memory
from fledgling.runtime.machine_checks import check_memory_and_disk
from fledgling.runtime.machine_memory import get_available_memory, get_total_memory
from fledgling.runtime.system_environment import collect_environment
from fledgling.watch.machine import MachineLoad

MIB = 2**20


def write_group(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")


@pytest.fixture
def mount(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroup, "MOUNT", tmp_path / "mount")
    monkeypatch.setattr(cgroup, "OWN_GROUPS", tmp_path / "own")
    return tmp_path / "mount"


def test_without_a_limit_it_is_the_machine_s(mount):
    machine = get_total_memory()
    write_group(mount, {"memory.max": "max", "memory.current": 5})
    write_group(mount / "memory", {"memory.limit_in_bytes": 9223372036854771712, "memory.usage_in_bytes": 5})
    assert machine and get_total_memory() == machine
    assert 0 < get_available_memory() < machine


@pytest.mark.parametrize("version", [1, 2])
def test_every_reader_has_the_limit_of_the_container(version, mount):
    files = {"memory.max": 100 * MIB, "memory.current": 60 * MIB, "memory.stat": f"anon 1\ninactive_file {10 * MIB}"}
    if version == 1:
        names = {"memory.max": "memory.limit_in_bytes", "memory.current": "memory.usage_in_bytes"}
        files = {names.get(name, name): value for name, value in files.items()}
        files["memory.stat"] = f"inactive_file 3\ntotal_inactive_file {10 * MIB}"
    write_group(mount / "memory" if version == 1 else mount, files)
    assert get_total_memory() == 100 * MIB == collect_environment()["memory"]
    assert get_usable_memory(torch.device("cpu")) == 50 * MIB
    assert get_available_memory() == 50 * MIB
    assert check_memory_and_disk()[0].detail == "0.0 GiB available" and not check_memory_and_disk()[0].ok
    assert MachineLoad().read()["memory_total"] == 100 * MIB and MachineLoad().read()["memory_free"] == 50 * MIB


def test_the_smallest_limit_of_the_parents_counts(mount):
    cgroup.OWN_GROUPS.write_text("0::/slice/job/step\n")
    write_group(mount / "slice/job/step", {"memory.max": "max"})
    write_group(mount / "slice/job", {"memory.max": 300 * MIB, "memory.current": 10 * MIB})
    write_group(mount / "slice", {"memory.max": 400 * MIB, "memory.current": 390 * MIB})
    assert get_total_memory() == 300 * MIB
    assert get_available_memory() == 10 * MIB, "the slice has no more, though the job may use it"


def test_a_system_without_counts_says_nothing(mount, tmp_path, monkeypatch):
    monkeypatch.setattr(machine_memory, "MEMINFO", tmp_path / "none")
    assert get_available_memory() is None
