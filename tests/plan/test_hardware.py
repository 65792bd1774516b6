"""The table of devices: names are found in any case, and a wrong one is answered with a near one."""

import pytest

from fledgling.config import UserError
from fledgling.plan.hardware import DEVICES, find_device


def test_a_device_is_found_by_name():
    assert find_device("H100") is DEVICES["h100"] and find_device("h100").peak_flops == 989e12
    assert {name: device.kind for name, device in DEVICES.items() if device.kind == "cpu"} == {
        "cpu": "cpu",
        "cpu-bf16": "cpu",
    }


def test_every_device_has_its_name_and_plausible_figures():
    for name, device in DEVICES.items():
        assert device.name == name == name.lower()
        assert 1e11 < device.peak_flops < 1e16 and 2**33 <= device.memory < 2**40 and 10 < device.watts <= 1500


def test_an_unknown_device_names_the_known_ones():
    with pytest.raises(UserError, match=r'unknown GPU "h10".*h100'):
        find_device("h10")
    with pytest.raises(UserError, match="there are cpu, cpu-bf16, t4"):
        find_device("abacus")
