"""The end of a command that trains: its outcome as an exit code (`runtime/exit_codes.py`) and a line on stderr."""

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
    """The outcome of the block within `training_exit_code`."""

    code: int = DONE


@contextmanager
def training_exit_code() -> Iterator[ExitStatus]:
    """Runs a block that trains; afterwards leaves the process group.

    A requested stop becomes the code STOPPED; a UserError is raised; any other exception is printed, with code FAULT.
    """
    from fledgling.train.loop import TrainingStopped

    status = ExitStatus()
    try:
        yield status
    except TrainingStopped as stopped:
        status.code = STOPPED
        if is_main_process():
            print(f"{stopped}; the same command resumes from there", file=sys.stderr)
    except UserError:
        raise
    except Exception:
        status.code = FAULT
        traceback.print_exc()
    finally:
        leave_process_group()
