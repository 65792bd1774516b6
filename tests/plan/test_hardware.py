"""The table of devices: names are found in any case, and a wrong one is answered with a near one."""

import pytest

from fledgling.config import UserError
from fledgling.plan.cost import estimate_usd
from fledgling.plan.hardware import DEVICES, find_device, find_product, make_own_device, share_device


def test_a_device_is_found_by_name():
    assert find_device("H100") is DEVICES["h100"] and find_device("h100").peak_flops == 989e12
    assert {name: device.kind for name, device in DEVICES.items() if device.kind == "cpu"} == {
        "cpu": "cpu",
        "cpu-bf16": "cpu",
        "cpu-mixed": "cpu",
    }


def test_every_device_has_its_name_and_plausible_figures():
    for name, device in DEVICES.items():
        assert device.name == name == name.lower()
        assert 1e11 < device.peak_flops < 1e16 and 2**33 <= device.memory < 2**40 and 10 < device.watts <= 1500


def test_ranks_share_a_processor_and_have_a_gpu_each():
    whole, half = find_device("cpu-bf16"), share_device(find_device("cpu-bf16"), 2)
    assert half.peak_flops == whole.peak_flops / 2 and half.memory == whole.memory // 2
    assert half.with_dtype("float32").peak_flops == whole.with_dtype("float32").peak_flops / 2
    assert estimate_usd(3.0, half, 2, 0.5) == estimate_usd(3.0, whole, 1, 0.5) == 1.5, "one machine is paid for"
    assert share_device(find_device("h100"), 8) == find_device("h100") and share_device(whole, 1) == whole


def test_an_unknown_device_names_the_known_ones():
    with pytest.raises(UserError, match=r'unknown GPU "h10".*h100'):
        find_device("h10")
    with pytest.raises(UserError, match="there are cpu, cpu-bf16, cpu-mixed, t4"):
        find_device("abacus")


@pytest.mark.parametrize(
    ("product", "gib", "name"),
    [
        ("NVIDIA H100 80GB HBM3", 79.1, "h100"),
        ("NVIDIA H100 PCIe", 79.1, "h100-pcie"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "a100-40"),
        ("NVIDIA A100-PCIE-40GB", 39.4, "a100-40"),
        ("NVIDIA A100-SXM4-80GB", 79.2, "a100-80"),
        ("NVIDIA A100 80GB PCIe", 79.2, "a100-80"),
        ("NVIDIA H200", 139.8, "h200"),
        ("NVIDIA B200", 178.4, "b200"),
        ("Tesla T4", 14.6, "t4"),
        ("NVIDIA L4", 22.0, "l4"),
        ("NVIDIA L40S", 44.4, "l40s"),
        ("NVIDIA GeForce RTX 3060", 11.8, "rtx3060"),
        ("NVIDIA GeForce RTX 4060 Ti", 15.6, "rtx4060ti"),
        ("NVIDIA GeForce RTX 4090", 23.5, "rtx4090"),
        ("AMD Instinct MI300X", 191.7, "mi300x"),
        ("Apple M3 Max", 0, "m3-max"),
        # another GPU, or another size of it
        ("NVIDIA L40", 44.4, None),
        ("NVIDIA H100 NVL", 93.1, None),
        ("NVIDIA GeForce RTX 3060 Ti", 7.8, None),
        ("NVIDIA GeForce RTX 3060", 7.8, None),
        ("NVIDIA GeForce RTX 4060 Ti", 7.8, None),
        ("NVIDIA GeForce RTX 4090 D", 23.5, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.7, None),
        ("NVIDIA GeForce RTX 3090 Ti", 23.5, None),
        ("NVIDIA H200 NVL MIG 1g.18gb", 16.0, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9.8, None),
        ("Apple M3 Pro", 0, None),
    ],
)
def test_a_gpu_is_known_by_its_exact_name_and_memory(product, gib, name):
    found = find_product("mps" if "Apple" in product else "cuda", product, round(gib * 2**30))
    assert (found and found.name) == name


def test_the_peak_is_that_of_a_dtype_that_the_gpu_multiplies():
    t4 = find_device("t4")
    assert (t4.dtype, t4.peak_flops) == ("float16", 65e12)
    assert t4.with_dtype("float32").peak_flops == 8.1e12
    with pytest.raises(UserError, match=r"run.dtype=bfloat16: t4 multiplies float16, float32 only"):
        t4.with_dtype("bfloat16")
    for device in DEVICES.values():
        assert device.peak_flops == device.peaks[device.dtype] >= device.peaks["float32"] and device.bandwidth > 0


def test_a_gpu_of_ones_own_is_given_by_its_figures():
    own = make_own_device(None, peak_tera=165, bandwidth_giga=1008, memory_gib=24, watts=450)
    listed = find_device("rtx4090")
    assert own.memory == listed.memory and own.bandwidth == listed.bandwidth and own.watts == listed.watts
    assert own.name == "own" and own.with_dtype("bfloat16").peak_flops == 165e12 and not own.is_measured
    bigger = make_own_device(listed, memory_gib=48)
    assert bigger.memory == 2 * listed.memory and bigger.peak_flops == listed.peak_flops
    with pytest.raises(UserError, match=r"needs --peak .* and --memory"):
        make_own_device(None, peak_tera=5)
    with pytest.raises(UserError, match="--memory -1: expected a number above 0"):
        make_own_device(listed, memory_gib=-1)


def test_a_processor_that_trains_in_float32_answers_in_bfloat16():
    device = DEVICES["cpu-mixed"]
    assert (device.dtype, device.answer_dtype) == ("float32", "bfloat16")
    assert device.peak_flops == device.peaks["float32"] > device.peaks["bfloat16"]
    assert all(device.dtype == device.answer_dtype for name, device in DEVICES.items() if name != "cpu-mixed")
