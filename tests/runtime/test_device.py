"""The device setup: dtype, compiler and peak."""

import shutil
from dataclasses import replace

import pytest
import torch

from fledgling.config import RunConfig, UserError
from fledgling.runtime import device
from fledgling.runtime.device import (
    DeviceSetup,
    choose_dtype,
    choose_setup,
    is_peak_settled,
    measure_peak_flops,
    set_up_device,
    should_compile,
)
from fledgling.runtime.world import World

CPU = torch.device("cpu")


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not should_compile("auto", CPU) and not should_compile("off", CPU)
    with pytest.raises(UserError, match="needs g\\+\\+"):
        should_compile("on", CPU)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert should_compile("auto", CPU) and should_compile("on", CPU) and not should_compile("off", CPU)


def test_a_gpu_compiles_only_with_triton_and_a_c_compiler(monkeypatch):
    gpu, programs = torch.device("cuda"), {"gcc"}
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name in programs else None)
    monkeypatch.setattr(device, "find_spec", lambda name: object())
    assert should_compile("auto", gpu) and should_compile("on", gpu)
    programs.clear()
    assert not should_compile("auto", gpu)
    with pytest.raises(UserError, match="needs Triton, and gcc or clang"):
        should_compile("on", gpu)
    programs.add("gcc")
    monkeypatch.setattr(device, "find_spec", lambda name: None)
    assert not should_compile("auto", gpu)


def test_the_dtype_is_bfloat16_only_where_the_hardware_multiplies_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert choose_dtype(CPU) == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    assert choose_dtype(CPU) == torch.float32


@pytest.mark.parametrize(
    ("name", "has_matrix_units", "training"),
    [
        ("Intel(R) Xeon(R) Processor", False, torch.float32),
        ("Intel(R) Xeon(R) Processor", True, torch.bfloat16),
        ("AMD EPYC 9R14", False, torch.bfloat16),
    ],
)
def test_an_intel_processor_without_matrix_units_trains_in_float32_and_answers_in_bfloat16(
    monkeypatch, name, has_matrix_units, training
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "amx_bf16": has_matrix_units})
    monkeypatch.setattr(device, "read_cpu_name", lambda: name)
    setup = choose_setup(RunConfig(compile="off"), World(0, 1, 0, CPU))
    assert (setup.dtype, setup.engine_dtype) == (training, torch.bfloat16)
    assert ("(answers in bfloat16)" in setup.summary) is (training == torch.float32)
    given = choose_setup(RunConfig(compile="off", dtype="float32"), World(0, 1, 0, CPU))
    assert given.dtype == given.engine_dtype == torch.float32


def test_the_setup_follows_the_recipe_and_keeps_the_random_state():
    threads, random_state = torch.get_num_threads(), torch.get_rng_state()
    try:
        setup = set_up_device(RunConfig(dtype="float32", compile="off", threads=1), World(0, 1, 0, CPU))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert (setup.dtype_name, setup.compiled) == ("float32", False) and setup.memory_limit > 0
    assert torch.equal(torch.get_rng_state(), random_state)


def test_compiled_functions_may_have_kernels_for_many_shapes(monkeypatch):
    """PyTorch compiles a function for 8 shapes; the update rule of DoRA's parameters met more and ran eagerly."""
    monkeypatch.setattr(device, "should_compile", lambda mode, kind: True)
    threads = torch.get_num_threads()
    with torch._dynamo.config.patch(recompile_limit=8):
        set_up_device(RunConfig(dtype="float32", threads=threads), World(0, 1, 0, CPU))
        assert torch._dynamo.config.recompile_limit == device.RECOMPILE_LIMIT == 64


def test_the_peak_is_measured_and_shown():
    assert measure_peak_flops(CPU, torch.float32, size=64, seconds=0.0) > 0
    setup = DeviceSetup(torch.bfloat16, True, 1.5e12)
    assert setup.summary == "bfloat16, compiled, peak 1,500 GFLOP/s measured"
    without = replace(setup, compiled=False)
    assert "not compiled (no compiler found)" in without.summary
    assert "not compiled (run.compile is off)" in replace(without, not_compiled="run.compile is off").summary


def test_a_peak_is_measured_until_two_products_were_as_fast():
    """Three products take as long as a measurement: on a shared machine one of them may be undisturbed, or none."""
    assert not is_peak_settled([], 9.0, 0.3) and not is_peak_settled([0.1, 0.1], 0.2, 0.3)
    assert is_peak_settled([0.15, 0.1, 0.102], 0.3, 0.3)
    assert not is_peak_settled([0.15, 0.1, 0.13], 0.4, 0.3) and not is_peak_settled([0.4], 0.4, 0.3)
    assert is_peak_settled([0.15, 0.1, 0.13], 1.2, 0.3) and is_peak_settled([2.0], 2.0, 0.3), (
        "it does not wait for ever"
    )


def test_fp8_where_it_cannot_be_is_one_line(monkeypatch):
    with pytest.raises(UserError, match=r"run\.fp8: cpu multiplies no fp8"):
        device.require_fp8(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    with pytest.raises(UserError, match=r"A100 has compute capability 8\.0; expected 8\.9"):
        device.require_fp8(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    device.require_fp8(torch.device("cuda"))
    monkeypatch.setattr(device, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs torchao"):
        device.require_fp8(torch.device("cuda"))


def test_each_kind_of_accelerator_has_its_dtype(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert choose_dtype(torch.device("cuda")) == torch.float16  # a T4
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.xpu, "is_bf16_supported", lambda including_emulation: not including_emulation)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: major <= 13)
    kinds = {kind: choose_dtype(torch.device(kind)) for kind in ("cuda", "xpu", "mps")}
    assert kinds == {"cuda": torch.bfloat16, "xpu": torch.bfloat16, "mps": torch.float32}


def test_an_apple_gpu_is_not_compiled():
    assert not should_compile("auto", torch.device("mps"))
    with pytest.raises(UserError, match="Apple GPU"):
        should_compile("on", torch.device("mps"))
