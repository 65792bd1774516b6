"""What the machine offers: each check has its finding, and what is missing says what to do."""

import shutil
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch

from fledgling.runtime import machine_checks
from fledgling.runtime.machine_checks import (
    check_compiler,
    check_gpus,
    check_machine,
    check_memory_and_disk,
    check_processor,
    check_torch,
)


def test_this_machine_has_a_finding_of_each_kind():
    names = [finding.name for finding in check_machine()]
    assert names[0] == "python" and names[-1] == "disk" and check_machine()[0].ok
    assert check_torch(torch).ok and check_processor().ok and "cores" in check_processor().detail


@pytest.mark.parametrize(("version", "ok"), [("2.10.1", False), ("2.11.0+cpu", True), ("3.0", True)])
def test_an_old_torch_is_rejected(version, ok):
    finding = check_torch(SimpleNamespace(__version__=version))
    assert finding.ok is ok and (ok or finding.advice == "pip install 'torch>=2.11'")


def test_a_full_disk_says_what_to_do(monkeypatch):
    usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 2**30))
    disk = check_memory_and_disk()[-1]
    assert not disk.ok and disk.detail.startswith("1.0 GiB") and "run.out" in disk.advice


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(machine_checks, "find_cxx_compiler", lambda: None)
    monkeypatch.delenv("CXX", raising=False)
    assert check_compiler().detail == "no C++ compiler"
    monkeypatch.setenv("CXX", "/no/such")
    assert check_compiler().detail == "CXX=/no/such is not there" and not check_compiler().ok


def test_each_kind_of_gpu_is_described():
    def machine(kind):
        functions = {
            "device_count": lambda: 2,
            "get_device_properties": lambda i: SimpleNamespace(name="C", total_memory=2**30),
        }
        parts = {
            name: SimpleNamespace(is_available=lambda name=name: name == kind, **functions) for name in ("cuda", "xpu")
        }
        return SimpleNamespace(
            **parts, backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: kind == "mps"))
        )

    assert check_gpus(machine("cuda")).detail == "C (1 GiB), C (1 GiB)"
    assert check_gpus(machine("xpu")).detail == "C, C (xpu)" and check_gpus(machine("mps")).detail == "Apple GPU (mps)"
