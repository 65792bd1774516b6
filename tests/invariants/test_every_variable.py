"""Every environment variable that the package reads from its user is set by a test, and has the effect it is for."""

import re
from pathlib import Path

import pytest
import torch

from fledgling.cli import main
from fledgling.cli.terminal_input import input_history
from fledgling.files import resolve_data_root
from fledgling.kernels import native
from fledgling.plan.measured_speed import speed_file
from fledgling.runtime.compiler import find_cxx_compiler
from fledgling.runtime.device import should_compile
from fledgling.runtime.machine_checks import check_compiler
from tests.invariants.test_docs import ROOT

OF_LIBRARIES = {  # set for libraries
    *("OMP_NUM_THREADS", "PYTORCH_CUDA_ALLOC_CONF", "TOKENIZERS_PARALLELISM", "TORCHELASTIC_SIGNALS_TO_HANDLE"),
}
READ = re.compile(r"""environ(?:\.get\(|\[|\.setdefault\()\s*["']([A-Z_]+)["']""")


def check_data_root(folder: Path) -> None:
    assert resolve_data_root(None) == folder


def check_cache(folder: Path) -> None:
    assert speed_file() == folder / "speed.json"


def check_user_cache(folder: Path) -> None:
    assert speed_file() == folder / "fledgling" / "speed.json"


def check_state(folder: Path) -> None:
    with input_history():
        pass
    assert (folder / "fledgling" / "chat-history").is_file()


def check_cxx(folder: Path) -> None:
    """A compiler that is not there is not called, and doctor, torch.compile and the native kernels agree."""
    assert find_cxx_compiler() is None and not check_compiler().ok
    assert not should_compile("auto", torch.device("cpu"))
    assert native.load_native_library.__wrapped__() is None


VARIABLES = {
    "FLEDGLING_DATA": check_data_root,
    "FLEDGLING_CACHE": check_cache,
    "XDG_CACHE_HOME": check_user_cache,
    "XDG_STATE_HOME": check_state,
    "CXX": check_cxx,
}
IN_ONE_LINE = {  # variable: value, command, what its error says
    "HF_ENDPOINT": ("http://127.0.0.1:9", "data fetch climbmix --shards 1", "cannot reach http://127.0.0.1:9"),
    "FLEDGLING_API_KEY": ("short", "serve nowhere --host 0.0.0.0", "at least 8 visible"),
}
ELSEWHERE = {"CC": "only a GPU's compiler reads it"}


@pytest.mark.parametrize("name", VARIABLES)
def test_a_variable_has_its_effect(name, tmp_path, monkeypatch):
    monkeypatch.delenv("FLEDGLING_CACHE", raising=False)
    monkeypatch.setenv(name, str(tmp_path))
    VARIABLES[name](tmp_path)


@pytest.mark.parametrize("name", IN_ONE_LINE)
def test_a_variable_sets_its_option(name, monkeypatch, capsys, tmp_path):
    value, command, message = IN_ONE_LINE[name]
    monkeypatch.setenv("FLEDGLING_DATA", str(tmp_path))
    monkeypatch.setenv(name, value)
    assert main(command.split()) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_native_kernels_can_be_switched_off(monkeypatch):
    monkeypatch.setenv(native.ENV_SWITCH, "0")
    assert native.ENV_SWITCH == "FLEDGLING_NATIVE" and native.load_native_library.__wrapped__() is None


def test_every_variable_that_is_read_is_here():
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "fledgling").rglob("*.py"))
    found = {name for source in sources for name in READ.findall(source)}
    assert found == {*VARIABLES, *IN_ONE_LINE, *ELSEWHERE, *OF_LIBRARIES}
