"""How a command that trains ends: what has happened becomes an exit code (`exits.py`) and a line on stderr."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fledgling.config import UserError
from fledgling.runtime.exit_codes import DONE, FAULT, STOPPED
from fledgling.runtime.world import is_main_process, leave_process_group


@dataclass
class ExitStatus:
    """How the work within `leaving` has ended."""

    code: int = DONE


@contextmanager
def training_exit_code() -> Iterator[ExitStatus]:
    """Within it is training, which may be asked to stop, or fail; afterwards the group of ranks is left.

    A user's mistake goes on up; a bug is shown as it is, with exit code FAULT.
    """
    from fledgling.train.loop import TrainingStopped

    left = ExitStatus()
    try:
        yield left
    except TrainingStopped as stopped:
        left.code = STOPPED
        if is_main_process():
            print(f"{stopped}; the same command goes on from there", file=sys.stderr)
    except UserError:
        raise
    except Exception:
        left.code = FAULT
        traceback.print_exc()
    finally:
        leave_process_group()
