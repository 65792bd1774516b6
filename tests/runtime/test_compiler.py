"""What a stop leaves of compiled code does not end the runs after it."""

import os
import subprocess
import sys

import pytest

from fledgling.runtime.compiler import explain_compile_failure, find_cxx_compiler

STEP = """
import torch
from fledgling.runtime.compiler import explain_compile_failure
function = torch.compile(lambda x: (x.sin() * 3 + x).sum())
try:
    print(float(function(torch.ones(64, 64))) > 0)
except RuntimeError as error:
    print(explain_compile_failure(error))
"""


@pytest.mark.skipif(find_cxx_compiler() is None, reason="needs a C++ compiler")
def test_compiled_code_that_was_cut_is_removed_and_the_next_start_works(tmp_path):
    """Each further start ended with "file too short"."""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}

    def start():
        return subprocess.run([sys.executable, "-c", STEP], env=environment, capture_output=True, text=True).stdout

    assert start() == "True\n"
    libraries = [path for path in tmp_path.rglob("*.so") if "main" in path.name]
    assert libraries
    for path in libraries:
        os.truncate(path, 100)
    line = start()
    assert "incomplete; it is removed: run the same command again" in line and line.count("\n") == 1
    assert not all(path.exists() for path in libraries) and start() == "True\n"


def test_an_error_of_the_compiler_during_a_stop_is_one_line_and_others_stay_errors():
    class BackendCompilerFailed(RuntimeError):
        pass

    error = BackendCompilerFailed("CppCompileError: C++ compile error\n" + "warning\n" * 2_800)
    assert explain_compile_failure(error, is_stopping=True).startswith("stopped while the model was being compiled")
    assert explain_compile_failure(error) == explain_compile_failure(RuntimeError("/a/b.so: file too short")) == ""
