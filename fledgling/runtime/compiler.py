"""The C++ compiler of this machine, which torch.compile and the native kernels call, and what ends its work."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from fledgling.config import UserError

# What the loader says of a library whose end is missing; the name begins a path, so that nothing else is removed.
_INCOMPLETE = re.compile(r"(/[^\s:]*/[^\s/:]+\.so): (?:file too short|invalid ELF header|cannot read file data)")


def find_cxx_compiler() -> str | None:
    """Returns the path of the compiler that CXX names, without CXX of g++ or clang++; None if it is not there."""
    names = (os.environ["CXX"],) if os.environ.get("CXX") else ("g++", "clang++")
    return next(filter(None, map(shutil.which, names)), None)


def explain_compile_failure(error: BaseException, is_stopping: bool = False) -> str:
    """Returns one line about an error of torch.compile that a second start does not meet again; "" for any other.

    A signal that stops a run also ends the compiler that it waits for, and the library that this was writing stays in
    PyTorch's cache, half written: every later start would load it. It is removed.

    is_stopping: whether a stop has been requested.
    """
    if not any(kind.__name__ == "BackendCompilerFailed" for kind in type(error).__mro__):
        return ""
    if found := _INCOMPLETE.search(str(error)):
        with suppress(OSError):
            os.unlink(found[1])
        return (
            f"{found[1]}: compiled code that an earlier stop or a full disk left incomplete; it is removed: run the "
            "same command again"
        )
    if is_stopping:
        return "stopped while the model was being compiled; run the command again to resume from the last checkpoint"
    return ""


@contextmanager
def report_compile_failures(is_stopping: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Raises UserError, in one line, for what `explain_compile_failure` explains; `is_stopping` as there."""
    try:
        yield
    except RuntimeError as error:
        if line := explain_compile_failure(error, is_stopping()):
            raise UserError(line) from None
        raise
