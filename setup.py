"""Builds a wheel. With FLEDGLING_PREBUILT=1 it holds the native kernels, compiled for every processor of this kind.

Such a wheel decodes at full speed where there is no compiler. Without the variable the wheel is pure Python, and the
kernels are compiled when they are first needed. All other settings are in pyproject.toml.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

IS_PREBUILT = os.environ.get("FLEDGLING_PREBUILT") == "1"


class BuildWithKernels(build_py):
    """Copies the package, and compiles the kernels into the copy."""

    def run(self) -> None:
        """Copies, and compiles where that is asked for."""
        super().run()
        if not IS_PREBUILT or self.editable_mode:
            return
        path = Path(__file__).parent / "fledgling" / "kernels" / "native_build.py"
        spec = importlib.util.spec_from_file_location("native_build", path)
        native_build = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = native_build  # where its dataclass looks for it
        spec.loader.exec_module(native_build)
        compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
        variants = native_build.list_variants()
        if compiler is None or not variants:
            sys.exit("FLEDGLING_PREBUILT=1 needs g++ or clang++ (or CXX), and Linux on x86_64 or aarch64")
        folder = Path(self.build_lib) / "fledgling" / "kernels" / native_build.PREBUILT_FOLDER.name
        folder.mkdir(parents=True, exist_ok=True)
        for variant in variants:
            native_build.compile_variant(compiler, variant, folder / variant.file_name)


class WheelForPlatform(bdist_wheel):
    """Names the platform in a wheel that has compiled kernels; any Python 3 runs it, since ctypes loads them."""

    def finalize_options(self) -> None:
        """Marks the wheel as one of this platform."""
        super().finalize_options()
        self.root_is_pure = not IS_PREBUILT

    def get_tag(self) -> tuple[str, str, str]:
        """Returns (Python, ABI, platform)."""
        python, abi, platform = super().get_tag()
        return ("py3", "none", platform) if IS_PREBUILT else (python, abi, platform)


setup(cmdclass={"build_py": BuildWithKernels, "bdist_wheel": WheelForPlatform})
