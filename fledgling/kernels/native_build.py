"""The variants of the native kernels, one for each set of vector instructions, and how one is compiled.

A variant has its own flags and its own file, so a machine uses the best one that its processor runs, and a wheel can
hold all of them. This module needs nothing but Python: setup.py compiles a wheel's variants with it.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SOURCE_FOLDER = Path(__file__).with_name("cpp")
PREBUILT_FOLDER = Path(__file__).with_name("prebuilt")  # of a wheel; not in a checkout
COMMON_FLAGS = ("-O3", "-fopenmp", "-shared", "-fPIC", "-std=c++17")
AVX2_FLAGS = ("-mavx2", "-mfma", "-mf16c", "-mbmi2")
AVX512_FLAGS = (*AVX2_FLAGS, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
TIMEOUT_SECONDS = 300
DIGEST_BYTES = 32


@dataclass(frozen=True)
class Variant:
    """One compiled form of the kernels."""

    name: str
    machine: str  # platform.machine()
    features: frozenset[str]  # of the processor, under PyTorch's names
    flags: tuple[str, ...]

    @property
    def file_name(self) -> str:
        """The library's file, under a hash of all it is made from: a library of other sources is never loaded."""
        inputs = (*(path.read_bytes() for path in list_sources()), *map(str.encode, self.flags), self.machine.encode())
        digest = hashlib.sha256(b"\0".join(inputs)).hexdigest()[:16]
        return f"native-{self.name}-{digest}.so"


AVX512_FEATURES = frozenset({"avx512_f", "avx512_bw", "avx512_dq", "avx512_vl", "avx2", "fma3"})
VARIANTS = (  # the best first
    Variant(
        "avx512-bf16",
        "x86_64",
        AVX512_FEATURES | {"avx512_vnni", "avx512_bf16"},
        (*AVX512_FLAGS, "-mavx512vnni", "-mavx512bf16"),
    ),
    Variant("avx512-vnni", "x86_64", AVX512_FEATURES | {"avx512_vnni"}, (*AVX512_FLAGS, "-mavx512vnni")),
    Variant("avx512", "x86_64", AVX512_FEATURES, AVX512_FLAGS),
    Variant("avx2", "x86_64", frozenset({"avx2", "fma3"}), AVX2_FLAGS),
    Variant("neon", "aarch64", frozenset(), ()),
)


def list_sources() -> list[Path]:
    """Returns the files that a library is compiled from."""
    return sorted(path for path in SOURCE_FOLDER.iterdir() if path.suffix in (".cpp", ".h"))


def list_variants(machine: str | None = None) -> list[Variant]:
    """Returns the variants of a machine (default: this one), the best first; none where it does not run Linux."""
    if machine is None:
        machine = platform.machine() if sys.platform.startswith("linux") else ""
    return [variant for variant in VARIANTS if variant.machine == machine]


def compile_variant(compiler: str, variant: Variant, path: Path) -> None:
    """Compiles a variant to `path`, with a digest of the library behind its end, which the loader does not read.

    Raises:
        OSError, subprocess.SubprocessError: the compiler does not start, fails or takes too long.
    """
    command = [compiler, *COMMON_FLAGS, *variant.flags, "-o", str(path), str(SOURCE_FOLDER / "step.cpp")]
    subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_SECONDS)
    content = path.read_bytes()
    path.write_bytes(content + hashlib.sha256(content).digest())


def is_whole(path: Path) -> bool:
    """Returns whether a library has the content that it was compiled with: the first call into a cut one is fatal."""
    content = path.read_bytes()
    return hashlib.sha256(content[:-DIGEST_BYTES]).digest() == content[-DIGEST_BYTES:]
