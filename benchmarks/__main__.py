"""`python -m benchmarks NAME`: the experiments by name. Modules are imported when their experiment runs."""

from __future__ import annotations

import sys

import benchmarks.commands  # noqa: F401  # registers the experiments
from benchmarks.harness import main

if __name__ == "__main__":
    sys.exit(main())
