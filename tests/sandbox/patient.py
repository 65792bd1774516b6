"""The sandbox's functions with a minute for each program: a pause of the machine ends none that must succeed.

A test of the time limit gives its own, by name.
"""

from dataclasses import replace
from functools import partial

from fledgling.sandbox import interpreter, process, verdict
from fledgling.sandbox.process import Limits
from tests.waits import WAIT_SECONDS

run_program = partial(process.run_program, limits=Limits(WAIT_SECONDS))
check_program = partial(verdict.check_program, timeout=WAIT_SECONDS)
check_programs = partial(verdict.check_programs, timeout=WAIT_SECONDS)
evaluate_code = partial(interpreter.evaluate_code, limits=replace(interpreter.TOOL_LIMITS, timeout=WAIT_SECONDS))
