"""Compiles page/engine.cpp, the arithmetic of the page in one file, to page/engine.wasm.

    python -m fledgling.export.wasm      writes page/engine.wasm (the compiler: pip install "fledgling[wasm]")

The compiled file is kept in the tree and in the wheel: an export needs no compiler. The file names the source that it
was made from: its last section has the hash of engine.cpp and of the compiler's options.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

from fledgling.record.durable import write_file

PAGE = Path(__file__).with_name("page")
SOURCE, COMPILED = PAGE / "engine.cpp", PAGE / "engine.wasm"
COMPILER = (sys.executable, "-m", "ziglang", "c++")
OPTIONS = (
    *("--target=wasm32-freestanding", "-std=c++20", "-O3", "-msimd128", "-ffreestanding", "-nostdlib"),
    *("-fno-exceptions", "-fno-rtti", "-ffp-contract=off", "-fvisibility=hidden"),
    *("-Wl,--no-entry", "-Wl,--export-dynamic", "-Wl,--export=__heap_base", "-Wl,--strip-all"),
    "-Wl,-z,stack-size=65536",
)
SECTION = b"source"  # name of the section with the hash


def compile_engine() -> bytes:
    """Returns engine.wasm, compiled from the source in the tree."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / COMPILED.name
        subprocess.run([*COMPILER, *OPTIONS, "-o", compiled, SOURCE.name], cwd=PAGE, check=True, timeout=300)
        content = compiled.read_bytes()
    payload = bytes([len(SECTION)]) + SECTION + hash_source()
    return content + bytes([0, len(payload)]) + payload  # a custom section, which engines skip


def hash_source() -> bytes:
    """Returns the SHA-256 of the source and of the compiler's options."""
    return hashlib.sha256("\0".join((SOURCE.read_text(encoding="utf-8"), *OPTIONS)).encode()).digest()


if __name__ == "__main__":
    write_file(COMPILED, compile_engine())
    print(f"{COMPILED}: {COMPILED.stat().st_size} bytes")
