"""The kernel's restrictions as they are built: the seccomp filter of each processor, and limits that are denied."""

import struct

import pytest

from fledgling.sandbox import restrictions
from fledgling.sandbox.restrictions import (
    ALLOWED_SYSCALLS,
    AUDIT_ARCHITECTURES,
    RestrictionError,
    apply_rlimits,
    build_seccomp_filter,
    get_landlock_version,
)

DENY, KILL = 0x00050000, 0x80000000  # of linux/seccomp.h


@pytest.mark.parametrize("machine", AUDIT_ARCHITECTURES)
def test_a_filter_checks_the_architecture_first_and_denies_last(machine):
    code = [struct.unpack("=HBBI", part) for part in chunks(build_seccomp_filter(machine))]
    assert code[1][3] == AUDIT_ARCHITECTURES[machine] and code[2][3] == KILL
    assert code[-1][3] & 0xFFFF0000 == DENY
    column = list(AUDIT_ARCHITECTURES).index(machine)
    allowed = {numbers[column] for numbers in ALLOWED_SYSCALLS.values()} - {None}
    assert allowed <= {value for _, _, _, value in code}


def chunks(program):
    assert len(program) % 8 == 0
    return [program[start : start + 8] for start in range(0, len(program), 8)]


def test_a_limit_that_the_kernel_denies_is_named(monkeypatch):
    def fail(which, limits):
        raise OSError("not permitted")

    monkeypatch.setattr(restrictions.resource, "setrlimit", fail)
    with pytest.raises(RestrictionError, match="rlimits: not permitted"):
        apply_rlimits(1, 1, 1)


def test_the_version_of_landlock_is_a_number():
    assert get_landlock_version() >= 0
