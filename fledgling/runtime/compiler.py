"""The C++ compiler of this machine, which torch.compile and the native kernels call."""

from __future__ import annotations

import os
import shutil


def find_cxx_compiler() -> str | None:
    """Returns the path of the compiler that CXX names, without CXX of g++ or clang++; None if it is not there."""
    names = (os.environ["CXX"],) if os.environ.get("CXX") else ("g++", "clang++")
    return next(filter(None, map(shutil.which, names)), None)
