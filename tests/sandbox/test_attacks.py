"""Every program of tests/attacks, against the sandbox and, where that is safe, against a machine without it.

A program's first line says what runs it, what it tries, what the right outcome holds ("|" between alternatives) and
how the test is shown to be able to fail: `without LAYERS` (the same program, those layers off, prints ESCAPED), `plain`
(so it does as an ordinary process), `naive [TESTS]` (a harness that goes by exit status or output lets it pass).
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
from fledgling.sandbox.interpreter import evaluate_code
from fledgling.sandbox.process import MIB, Limits, run_program
from fledgling.sandbox.verdict import check_program

FOLDER = Path(__file__).parents[1] / "attacks"
LIMITS = Limits(timeout=10.0, memory_bytes=256 * MIB, output_bytes=100_000)
BRIEF = Limits(0.7, LIMITS.memory_bytes, LIMITS.output_bytes)  # for what would never end: each costs its whole time
HELD = re.compile(r"# (?P<way>\w+) \| (?P<tries>.+) \| right: (?P<right>.+) \| shown: (?P<shown>.+)")
GIVEN = "def trusted(number):\n    return 2 * number\n"
TESTS = {
    "": "def check(candidate):\n    assert candidate(21) == 42\n    assert candidate(7) == 14\n",
    "map": "assert double(21) == 42\nassert all(map(lambda number: double(number) == 2 * number, range(5)))\n",
    "helper": "assert double(21) == trusted(21)\nassert double(7) == trusted(7)\n",
}


@dataclass(frozen=True)
class Attack:
    name: str
    way: str
    right: list[str]
    shown: str
    code: str

    @property
    def tests(self) -> str:
        return TESTS[self.shown.removeprefix("naive").strip() if self.shown.startswith("naive") else ""]


def attacks() -> list[Attack]:
    found = []
    for path in sorted(FOLDER.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        line = HELD.fullmatch(text.splitlines()[0])
        assert line, f"{path.name}: the first line does not say what it is"
        found.append(Attack(path.stem, line["way"], line["right"].split("|"), line["shown"], text))
    return found


ATTACKS = attacks()
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
def stage(tmp_path, listeners) -> Iterator[str]:
    """The names that the programs use, as the lines that define them: files, processes and servers of the host."""
    place = tmp_path / "place"
    place.mkdir()
    names = {"PLACE": str(place), **listeners, "HARNESS": os.getpid(), "PACKAGE": pytest.__file__}
    for name in ("SECRET", "SCRATCH", "DOOMED", "MOVED"):
        path = place / name.lower()
        path.write_text("the secret")
        names[name] = str(path)
    (place / "stolen.py").write_text("VALUE = 1\n")
    (place / "link_to_secret").symlink_to(names["SECRET"])
    names["LINK"] = str(place / "link_to_secret")
    memory = ctypes.create_string_buffer(b"memory of the harness")
    victim = subprocess.Popen(["sleep", "60"])
    names |= {"ADDRESS": ctypes.addressof(memory), "VICTIM": victim.pid}
    yield "".join(f"{name} = {value!r}\n" for name, value in names.items())
    victim.kill()
    victim.wait()


@pytest.fixture(scope="module", autouse=True)
def subreaper() -> Iterator[None]:
    """Have orphans come to this process, where they are seen."""
    libc = ctypes.CDLL(None)
    libc.prctl(36, 1, 0, 0, 0)
    yield
    libc.prctl(36, 0, 0, 0, 0)


def descendants(pid: int) -> set[int]:
    """All processes below `pid`."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found |= {int(child)} | descendants(int(child))
    return found


def orphans(before: set[int]) -> set[int]:
    """Processes below this one that were not there `before` and are no fork servers."""
    servers = {
        pid
        for without in WITHOUT
        for server in process._get_pool(os.getpid(), without).idle  # a test may look: nothing else knows them
        for pid in (server.process.pid, *process_one(server))
    }
    workers = {pid for pid in descendants(os.getpid()) if Path(f"/proc/{pid}/comm").read_text().strip() == "monty"}
    return descendants(os.getpid()) - before - servers - workers


def process_one(server: process.ForkServer) -> list[int]:
    """The process inside a server's namespaces, where it has them."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    return [int(child) for child in children] if server.layers["namespaces"] == "on" else []


def off(names: str) -> frozenset[str]:
    """The layers that are off in a run that is to show something: namespaces would hide what the others refuse."""
    return frozenset(names.split("+")) | {"namespaces"}


WITHOUT = {
    off(attack.shown.removeprefix("without ").split()[0]) for attack in ATTACKS if attack.shown.startswith("without ")
} | {frozenset()}


def outcome(attack: Attack, stage: str, without: frozenset[str]) -> str:
    """Everything that is known of an attack's end, as one text."""
    limits = BRIEF if "timed out" in attack.right else LIMITS
    if attack.way == "verdict":
        verdict = check_program(attack.code, attack.tests, "double", limits.timeout, GIVEN)
        assert not verdict.passed
        return verdict.reason
    if attack.way == "interpreter":
        end = evaluate_code(stage + attack.code, Limits(0.3, 16 * MIB, 4096))
    else:
        end = run_program(stage + attack.code, limits, disabled_layers=without)
    return f"{end.output} {end.value} {end.error}"


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_fails(attack, stage, layers):
    """With the layers that must be on alone, and once more with namespaces, where a file may simply not be there."""
    spaced = layers["namespaces"] == "on"
    ways = {"bare": frozenset({"namespaces"}), "spaced": frozenset()}
    if attack.way != "process" or not spaced or "timed out" in attack.right:
        del ways["bare" if spaced else "spaced"]  # once is enough, or all there is
    if attack.shown.startswith("without namespaces"):
        ways.pop("bare", None)
    if not ways:
        pytest.skip("needs namespaces, which this machine does not give")
    for name, without in ways.items():
        run_program("'MARK-OF-AN-EARLIER-JOB'", disabled_layers=without)
        evaluate_code("left_over = 1")
        before = descendants(os.getpid())
        start = time.monotonic()
        found = outcome(attack, stage, without)
        assert "timed out" not in attack.right or time.monotonic() - start < BRIEF.timeout + 3.0
        assert "ESCAPED" not in found
        right = [*attack.right, "FileNotFoundError"] if name == "spaced" else attack.right
        assert any(words in found for words in right), found[:500]
        assert not orphans(before)
        assert run_program("1 + 1", disabled_layers=without).value == "2" and evaluate_code("1 + 1").value == "2"
        if attack.way == "verdict":
            assert check_program("def double(number):\n    return 2 * number", TESTS[""], "double").passed


@pytest.mark.parametrize("attack", SHOWN, ids=lambda attack: attack.name)
def test_the_same_program_succeeds_without(attack, stage, plain, layers):
    if attack.shown.startswith("naive"):
        asked = "check(double)\n" if "def check" in attack.tests else ""
        end = plain(f"{GIVEN}\n{attack.code}\n{attack.tests}\n{asked}")
        assert end.returncode == 0 or "PASSED" in end.stdout, end.stderr
        return
    if attack.shown == "plain":
        end = plain(stage + attack.code)
        assert "ESCAPED" in end.stdout, end.stderr
        return
    names, _, condition = attack.shown.removeprefix("without ").partition(" ")
    if condition == "as root" and not has_all_capabilities():
        pytest.skip("only root may do this without a sandbox")
    end = run_program(stage + attack.code, LIMITS, disabled_layers=off(names))
    if condition == "if the kernel has it" and "ESCAPED" not in end.output:
        pytest.skip("this kernel refuses it to everybody")
    assert "ESCAPED" in end.output, end


def has_all_capabilities() -> bool:
    status = Path("/proc/self/status").read_text()
    return (
        int(re.search(r"CapEff:\s*(\w+)", status)[1], 16) & (1 << 21 | 1 << 19 | 1 << 2) == 1 << 21 | 1 << 19 | 1 << 2
    )


def test_there_are_enough_attacks_and_most_are_shown_to_work():
    assert len(ATTACKS) >= 60
    assert len(SHOWN) >= len(ATTACKS) / 2
    assert {attack.way for attack in ATTACKS} == {"process", "verdict", "interpreter"}
