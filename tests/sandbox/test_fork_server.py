"""The fork server's own tables: what a child may read, which jobs there are. `test_process.py` runs it."""

import os
import sysconfig

from fledgling.sandbox import jailed
from fledgling.sandbox.fork_server import ROLES, list_readable_paths


def test_the_standard_library_is_readable_and_installed_packages_are_not():
    readable, listable = list_readable_paths()
    library = os.path.realpath(sysconfig.get_path("stdlib"))
    assert os.path.join(library, "json") in readable and library in listable
    assert not [path for path in readable if path.endswith(("site-packages", "dist-packages"))]
    assert "/dev/null" in readable and "/etc/passwd" not in readable


def test_a_job_is_a_program_a_candidate_or_its_check():
    jobs = {"run": jailed.execute_program, "candidate": jailed.serve_candidate, "check": jailed.execute_tests}
    assert jobs == ROLES
