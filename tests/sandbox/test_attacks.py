"""Every program of tests/attacks, in the sandbox and, where that is safe, without it.

A program's first line names what runs it, what it tries, the text of the right outcome ("|" between alternatives) and
how the attack is shown to work elsewhere: `without LAYERS` (with those layers disabled it prints ESCAPED), `plain` (it
prints ESCAPED as an ordinary process), `naive [TESTS]` (a harness that trusts exit status or output lets it pass).
"""

from __future__ import annotations

import ctypes
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fledgling.sandbox import process
from fledgling.sandbox.process import MIB, Limits
from fledgling.sandbox.verdict import CheckSeed
from tests.sandbox.conftest import descendants, read_proc
from tests.sandbox.patient import check_program, evaluate_code, run_program
from tests.waits import WAIT_SECONDS

ATTACKS_DIR = Path(__file__).parents[1] / "attacks"
LIMITS = Limits(timeout=WAIT_SECONDS, memory_bytes=256 * MIB, output_bytes=100_000)
SHORT_LIMITS = Limits(0.7, LIMITS.memory_bytes, LIMITS.output_bytes)  # for endless programs, which run until the limit
FIRST_LINE = re.compile(r"# (?P<way>\w+) \| (?P<tries>.+) \| right: (?P<right>.+) \| shown: (?P<shown>.+)")
SETUP_CODE = "def trusted(number):\n    return 2 * number\n"
TESTS = {
    "": "def check(candidate):\n    assert candidate(21) == 42\n    assert candidate(7) == 14\n",
    "map": "assert double(21) == 42\nassert all(map(lambda number: double(number) == 2 * number, range(5)))\n",
    "helper": "assert double(21) == trusted(21)\nassert double(7) == trusted(7)\n",
}


@dataclass(frozen=True)
class Attack:
    """An attack program and its first line."""

    name: str
    way: str
    right: list[str]
    shown: str
    code: str

    @property
    def tests(self) -> str:
        return TESTS[self.shown.removeprefix("naive").strip() if self.shown.startswith("naive") else ""]


def load_attacks() -> list[Attack]:
    loaded = []
    for path in sorted(ATTACKS_DIR.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        line = FIRST_LINE.fullmatch(text.splitlines()[0])
        assert line, f"{path.name}: the first line does not describe the attack"
        loaded.append(Attack(path.stem, line["way"], line["right"].split("|"), line["shown"], text))
    return loaded


ATTACKS = load_attacks()
SHOWN = [attack for attack in ATTACKS if not attack.shown.startswith("none: ")]


@pytest.fixture(scope="module")
def listeners(tmp_path_factory) -> Iterator[dict[str, object]]:
    """Servers on this machine: TCP, a unix socket with a path and one without."""
    name = f"fledgling-attack-{os.getpid()}"
    path = str(tmp_path_factory.mktemp("socket") / "unix")
    unix = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    with socket.create_server(("127.0.0.1", 0)) as tcp, unix[0], unix[1]:
        for server, address in zip(unix, (f"\0{name}", path), strict=True):
            server.bind(address)
            server.listen()
        yield {"PORT": tcp.getsockname()[1], "ABSTRACT": name, "UNIX": path}


@pytest.fixture
def definitions(tmp_path, listeners) -> Iterator[str]:
    """Lines that define the names which the programs use: files, processes and servers of the host."""
    folder = tmp_path / "folder"
    folder.mkdir()
    names = {"PLACE": str(folder), **listeners, "HARNESS": os.getpid(), "PACKAGE": pytest.__file__}
    for name in ("SECRET", "SCRATCH", "DOOMED", "MOVED"):
        path = folder / name.lower()
        path.write_text("the secret")
        names[name] = str(path)
    (folder / "stolen.py").write_text("VALUE = 1\n")
    (folder / "link_to_secret").symlink_to(names["SECRET"])
    names["LINK"] = str(folder / "link_to_secret")
    memory = ctypes.create_string_buffer(b"memory of the harness")
    victim = subprocess.Popen(["sleep", "60"])
    names |= {"ADDRESS": ctypes.addressof(memory), "VICTIM": victim.pid}
    yield "".join(f"{name} = {value!r}\n" for name, value in names.items())
    victim.kill()
    victim.wait()


@pytest.fixture(scope="module", autouse=True)
def subreaper() -> Iterator[None]:
    """Makes orphans children of this process, where the test sees them."""
    libc = ctypes.CDLL(None)
    libc.prctl(36, 1, 0, 0, 0)
    yield
    libc.prctl(36, 0, 0, 0, 0)


def find_orphans(before: set[int]) -> set[int]:
    """Returns the processes below this one that did not run `before` and are no fork servers."""
    seeds = (process.FIXED_HASH_SEED, CheckSeed.draw().hash_seed)
    servers = {
        pid
        for disabled in DISABLED_LAYERS
        for seed in seeds
        for server in process._get_pool(os.getpid(), disabled, seed).idle
        for pid in (server.process.pid, *init_processes(server))
    }
    workers = {pid for pid in descendants(os.getpid()) if read_proc(Path(f"/proc/{pid}/comm")).strip() == "monty"}
    return descendants(os.getpid()) - before - servers - workers


def init_processes(server: process.ForkServer) -> list[int]:
    """Returns the process inside a server's namespaces, where it has them."""
    children = read_proc(Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")).split()
    return [int(child) for child in children] if server.layers["namespaces"] == "on" else []


def layers_without(names: str) -> frozenset[str]:
    """Returns the layers to disable so that an attack succeeds; namespaces would hide what the others deny."""
    return frozenset(names.split("+")) | {"namespaces"}


DISABLED_LAYERS = {
    layers_without(attack.shown.removeprefix("without ").split()[0])
    for attack in ATTACKS
    if attack.shown.startswith("without ")
} | {frozenset()}


def run_attack(attack: Attack, definitions: str, disabled: frozenset[str]) -> str:
    """Runs an attack and returns its output, value and error as one text."""
    limits = SHORT_LIMITS if "timed out" in attack.right else LIMITS
    if attack.way == "verdict":
        verdict = check_program(attack.code, attack.tests, "double", timeout=limits.timeout, setup_code=SETUP_CODE)
        assert not verdict.passed
        return verdict.reason
    if attack.way == "interpreter":
        seconds = 0.3 if "TimeoutError" in attack.right else WAIT_SECONDS
        result = evaluate_code(definitions + attack.code, limits=Limits(seconds, 16 * MIB, 4096))
    else:
        result = run_program(definitions + attack.code, limits=limits, disabled_layers=disabled)
    return f"{result.output} {result.value} {result.error}"


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_fails(attack, definitions, layers):
    """Runs with the required layers alone, and again with namespaces, where a forbidden file does not exist."""
    namespaced = layers["namespaces"] == "on"
    ways = {"bare": frozenset({"namespaces"}), "namespaced": frozenset()}
    if attack.way != "process" or not namespaced or "timed out" in attack.right:
        del ways["bare" if namespaced else "namespaced"]  # once is enough, or the machine has no namespaces
    if attack.shown.startswith("without namespaces"):
        ways.pop("bare", None)
    if not ways:
        pytest.skip("needs namespaces, which this machine denies")
    for name, disabled in ways.items():
        run_program("'MARK-OF-AN-EARLIER-JOB'", disabled_layers=disabled)
        evaluate_code("left_over = 1")
        before = descendants(os.getpid())
        start = time.monotonic()
        report = run_attack(attack, definitions, disabled)
        assert "timed out" not in attack.right or time.monotonic() - start < SHORT_LIMITS.timeout + WAIT_SECONDS
        assert "timed out after" not in report or f"timed out after {SHORT_LIMITS.timeout:g} s" in report
        assert "ESCAPED" not in report
        right = [*attack.right, "FileNotFoundError"] if name == "namespaced" else attack.right
        assert any(words in report for words in right), report[:500]
        assert not find_orphans(before)
        assert run_program("1 + 1", disabled_layers=disabled).value == "2" and evaluate_code("1 + 1").value == "2"
        if attack.way == "verdict":
            assert check_program("def double(number):\n    return 2 * number", TESTS[""], "double").passed


@pytest.mark.parametrize("attack", SHOWN, ids=lambda attack: attack.name)
def test_the_same_attack_succeeds_without_the_sandbox(attack, definitions, run_plain, layers):
    if attack.shown.startswith("naive"):
        call = "check(double)\n" if "def check" in attack.tests else ""
        result = run_plain(f"{SETUP_CODE}\n{attack.code}\n{attack.tests}\n{call}")
        assert result.returncode == 0 or "PASSED" in result.stdout, result.stderr
        return
    if attack.shown == "plain":
        result = run_plain(definitions + attack.code)
        assert "ESCAPED" in result.stdout, result.stderr
        return
    names, _, condition = attack.shown.removeprefix("without ").partition(" ")
    if condition == "as root" and not has_all_capabilities():
        pytest.skip("only root may do this without a sandbox")
    result = run_program(definitions + attack.code, limits=LIMITS, disabled_layers=layers_without(names))
    if condition == "if the kernel has it" and "ESCAPED" not in result.output:
        pytest.skip("this kernel denies it to every process")
    assert "ESCAPED" in result.output, result


def has_all_capabilities() -> bool:
    status = Path("/proc/self/status").read_text()
    return (
        int(re.search(r"CapEff:\s*(\w+)", status)[1], 16) & (1 << 21 | 1 << 19 | 1 << 2) == 1 << 21 | 1 << 19 | 1 << 2
    )


def test_there_are_many_attacks_and_most_are_shown_to_work():
    assert len(ATTACKS) >= 60
    assert len(SHOWN) >= len(ATTACKS) / 2
    assert {attack.way for attack in ATTACKS} == {"process", "verdict", "interpreter"}
