"""A device that is not there: fake tensors on "cuda", "xpu" or "mps" that can be sliced and differentiated.

PyTorch for CPUs rejects both without a guard for the device and an accelerator that says it is present. A small library
adds them to the process, which must be one of its own: `python -m tests.fake_accelerator_steps`.
"""

import ctypes
import importlib.util
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

SOURCE = """
#include <cstring>
#include <optional>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/detail/MPSHooksInterface.h>
#include <ATen/detail/XPUHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
using namespace c10;
static DeviceType present = DeviceType::CPU;
template <DeviceType D>
struct Guard final : impl::NoOpDeviceGuardImpl<D> {
  Device getDevice() const override { return {D, 0}; }
  Device exchangeDevice(Device) const override { return {D, 0}; }
  Stream getStream(Device) const noexcept override { return Stream(Stream::DEFAULT, Device(D, 0)); }
  Stream getDefaultStream(Device) const override { return Stream(Stream::DEFAULT, Device(D, 0)); }
  Stream exchangeStream(Stream) const noexcept override { return Stream(Stream::DEFAULT, Device(D, 0)); }
  void record(void** event, const Stream&, const DeviceIndex, const EventFlag) const override { *event = nullptr; }
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
template <DeviceType D>
struct Registered { Guard<D> guard; impl::DeviceGuardImplRegistrar registrar{D, &guard}; };
static Registered<DeviceType::CUDA> cuda;
static Registered<DeviceType::MPS> mps;
static Registered<DeviceType::XPU> xpu;
namespace at::accelerator {  // found before PyTorch's own, because this library is loaded first
__attribute__((visibility("default"))) std::optional<DeviceType> getAccelerator(bool) {
  return present == DeviceType::CPU ? std::nullopt : std::optional(present);
}
}
template <class Interface>
struct Hooks final : Interface { bool hasPrimaryContext(DeviceIndex) const override { return true; } };
template <class Interface>
static void replace_methods(const Interface& hooks) {
  static Hooks<Interface> fake;
  std::memcpy((void*)&hooks, (void*)&fake, sizeof(void*));
}
extern "C" void choose_accelerator(int type) {
  present = static_cast<DeviceType>(type);
  replace_methods(at::detail::getCUDAHooks());
  replace_methods(at::detail::getMPSHooks());
  replace_methods(at::detail::getXPUHooks());
}
"""
TYPES = {"cuda": 1, "xpu": 12, "mps": 13}  # of c10::DeviceType


def missing() -> str:
    """Returns why this machine cannot fake an accelerator; "" where it can."""
    torch_folder = Path(importlib.util.find_spec("torch").origin).parent
    if any((torch_folder / "lib").glob("libtorch_cuda.*")):
        return "PyTorch with CUDA has a guard of its own"
    return "" if shutil.which("g++") else "the guard needs g++"


def build(folder: Path) -> Path:
    """Compiles the library, in about two seconds."""
    torch_folder = Path(importlib.util.find_spec("torch").origin).parent
    source, library = folder / "guard.cpp", folder / "guard.so"
    source.write_text(SOURCE, encoding="utf-8")
    include, lib = torch_folder / "include", torch_folder / "lib"
    flags = ["-shared", "-fPIC", "-O0", "-std=c++20", "-w", f"-I{include}", f"-L{lib}", f"-Wl,-rpath,{lib}"]
    subprocess.run(["g++", *flags, str(source), "-o", str(library), "-ltorch_cpu", "-lc10"], check=True)
    return library


@contextmanager
def fake_accelerator(library: ctypes.CDLL, kind: str):
    """Makes fake tensors of the device type `kind`; yields the device."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    library.choose_accelerator(TYPES[kind])
    try:
        with FakeTensorMode(), torch.autograd.set_multithreading_enabled(False):
            yield torch.device(kind, 0)
    finally:
        library.choose_accelerator(0)
