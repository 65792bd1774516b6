"""Verdicts on honest programs, and on HumanEval: every reference passes, every broken variant fails."""

from __future__ import annotations

import pytest

from benchmarks.sandbox import HUMAN_EVAL, break_solution, grade_programs, read_human_eval
from fledgling.files import resolve_data_root
from fledgling.sandbox.process import FIXED_HASH_SEED
from fledgling.sandbox.verdict import CheckSeed, ProgramCheck
from tests.sandbox.patient import check_program, check_programs
from tests.waits import WAIT_SECONDS

pytestmark = pytest.mark.usefixtures("layers")


def test_plain_asserts_and_a_check_function_are_run():
    program = "def double(number):\n    return 2 * number"
    assert check_program(program, "assert double(2) == 4", "double").passed
    assert check_program(program, "def check(candidate):\n    assert candidate(2) == 4", "double").passed
    verdict = check_program(program, "assert double(2) == 5", "double")
    assert not verdict.passed and verdict.reason == "AssertionError: assert double(2) == 5"


def test_tests_that_call_nothing_pass_no_program():
    for tests in ("", "def check(candidate):\n    pass", "import sys\nsys.exit(0)"):
        assert not check_program("def double(number):\n    return 0", tests, "double").passed


def test_tests_may_expect_an_error():
    tests = (
        "try:\n    root(-1)\nexcept ValueError as error:\n    assert 'negative' in str(error)\nelse:\n    assert False"
    )
    program = "def root(number):\n    raise {}('negative')"
    assert check_program(program.format("ValueError"), tests, "root").passed
    assert not check_program(program.format("KeyError"), tests, "root").passed
    assert not check_program("def root(number):\n    return 1", tests, "root").passed


def test_helpers_of_the_setup_code_are_not_taken_from_the_program():
    program = "def helper(x):\n    return 0\n\ndef f(x):\n    return 0"
    setup_code = "def helper(x):\n    return x + 1\n"
    assert not check_program(program, "assert f(1) == helper(1)", "f", setup_code=setup_code).passed
    assert check_program(program.replace("0", "x + 1"), "assert f(1) == helper(1)", "f", setup_code=setup_code).passed


def test_a_failure_stays_when_the_tests_catch_every_exception():
    tests = "try:\n    f(1)\nexcept BaseException:\n    pass\nassert True"
    assert not check_program("import os\ndef f(x):\n    os._exit(0)", tests, "f").passed
    assert not check_program("def f(x):\n    return object()", tests, "f").passed


def test_values_are_copies():
    tests = "numbers = [3, 1, 2]\nassert f(numbers) == []\nassert numbers == [3, 1, 2]"
    assert check_program("def f(numbers):\n    numbers.clear()\n    return numbers", tests, "f").passed


def test_verdicts_come_in_order():
    checks = [ProgramCheck(f"def f(x):\n    return {i}", "assert f(0) % 2 == 0", "f") for i in range(12)]
    assert [verdict.passed for verdict in check_programs(checks)] == [i % 2 == 0 for i in range(12)]


SHIFT = "def encode(text):\n    return ''.join(chr((ord(c) - 92) % 26 + 97) for c in text)\n"
RANDOM_TESTS = """
import string
from random import choice, randint
def check(candidate):
    for _ in range(5):
        text = "".join(choice(string.ascii_lowercase) for _ in range(randint(10, 20)))
        assert candidate(encode(text)) == text
"""
REPLAY = """
import os, random, string, sys, time
{prepare}
def decode(text):
    return "".join(random.choice(string.ascii_lowercase) for _ in range(random.randint(10, 20)))
"""
PREPARATIONS = {  # what a program may believe that the tests draw from
    "seed 0": "random.seed(0)",
    "seed 1": "random.seed(1)",
    "its own state": "",
    "the clock": "random.seed(int(time.time()))",
    "the clock in nanoseconds": "random.seed(time.time_ns())",
    "its process": "random.seed(os.getpid())",
    "its parent": "random.seed(os.getppid())",
    "its arguments": "random.seed(str(sys.argv))",
    "its environment": "random.seed(str(sorted(os.environ.items())))",
    "its hash": "random.seed(hash('seed'))",
    "its caller's job": "random.seed(str(sys._getframe(1).f_locals.get('job', {}).get('random_seed')))",
    "an address": "random.seed(id(random))",
}


@pytest.mark.parametrize("prepare", PREPARATIONS.values(), ids=PREPARATIONS.keys())
def test_a_program_that_draws_the_tests_itself_and_decodes_nothing_fails(prepare):
    """HumanEval/38 and /50 draw a text and ask for it back."""
    program = REPLAY.format(prepare=prepare)
    assert not check_program(program, RANDOM_TESTS, "decode", setup_code=SHIFT).passed


def test_a_program_that_decodes_passes_whatever_is_drawn():
    program = "def decode(text):\n    return ''.join(chr((ord(c) - 102) % 26 + 97) for c in text)\n"
    verdicts = [check_program(program, RANDOM_TESTS, "decode", setup_code=SHIFT) for _ in range(2)]
    assert all(verdict.passed for verdict in verdicts)
    assert verdicts[0].seed != verdicts[1].seed


def test_a_verdict_is_reproduced_by_its_seed():
    """The failure's text shows what was drawn: the same with the seed, another without it."""
    tests = "import random\nraise ValueError(f'{random.random()} {list({str(i) for i in range(9)})} {f(1)}')"
    program = "def f(x):\n    return x"
    first = check_program(program, tests, "f")
    assert first.reason.startswith("ValueError: 0.")
    assert check_program(program, tests, "f", seed=first.seed).reason == first.reason
    assert check_program(program, tests, "f").reason != first.reason
    other_hash = CheckSeed(first.seed.random_seed, first.seed.hash_seed % (2**32 - 1) + 1)
    assert check_program(program, tests, "f", seed=other_hash).reason != first.reason


def test_the_order_of_a_set_in_the_tests_is_not_the_programs():
    """A program that walks its own set does not meet the tests' order; with the tests' hash seed it would."""
    names = [f"name {number}" for number in range(40)]
    program = f"def order(x):\n    return list(set({names!r}))"
    tests = f"assert order(0) == list(set({names!r}))"
    assert not check_program(program, tests, "order").passed
    assert check_program(program, tests, "order", seed=CheckSeed(0, FIXED_HASH_SEED)).passed


READERS = {  # where a program may look for what the tests' process was given
    "the next message": "os.read(4, 1 << 16)",
    "its channel": "(os.set_blocking(3, False), os.read(3, 1 << 16))",
    "the tests' environment": "open(f'/proc/{os.getppid()}/environ').read()",
    "every environment": "[open(f'/proc/{p}/environ').read() for p in range(1, 99)]",
    "its command line": "open('/proc/self/cmdline').read()",
    "its siblings": "os.listdir('/proc')",
    "all objects": "[o for o in gc.get_objects() if isinstance(o, dict) and 'random_seed' in o][0]",
    "all frames": "[f.f_locals['seed'] for f in sys._current_frames().values()]",
    "the harness": "__import__('fledgling.sandbox.verdict')",
    "its memory": "open('/proc/self/mem', 'rb').read(1)",
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
def test_a_program_reads_no_seed(reader):
    """What it finds is returned and searched for the seed; an error or a hang is no pass either."""
    program = f"import gc, os, sys\ndef guess(x):\n    return str({reader})"
    seed = CheckSeed(0x5EED5EED5EED5EED, CheckSeed.draw().hash_seed)
    tests = f"found = guess(0)\nassert '5eed5eed5eed5eed' in found or '{seed.hash_seed}' in found"
    assert not check_program(program, tests, "guess", timeout=0.5, seed=seed).passed
    assert check_program("def guess(x):\n    return '5eed' * 4", tests, "guess", seed=seed).passed


@pytest.fixture(scope="module")
def human_eval() -> list[dict]:
    path = resolve_data_root() / HUMAN_EVAL
    if not path.is_file():
        pytest.skip(f"needs {HUMAN_EVAL} under FLEDGLING_DATA")
    return read_human_eval(path)


def find_passing(rows: list[dict], programs: list[str], seconds: float = 10.0) -> list[str]:
    """Returns the ids of the tasks whose program passed."""
    verdicts = zip(rows, grade_programs(rows, programs, seconds), strict=True)
    return [row["task_id"] for row, verdict in verdicts if verdict.passed]


def test_every_reference_solution_passes(human_eval):
    assert len(human_eval) == 164
    programs = [row["prompt"] + row["canonical_solution"] for row in human_eval]
    assert len(find_passing(human_eval, programs, WAIT_SECONDS)) == 164


@pytest.mark.parametrize("how", ["pair", "changed"])
def test_every_broken_variant_fails(human_eval, how):
    assert find_passing(human_eval, [break_solution(row, how) for row in human_eval]) == []
