"""`python -m fledgling.cli` is the same thing as `fledgling`."""

import sys

from fledgling.cli import main

if __name__ == "__main__":
    sys.exit(main())
