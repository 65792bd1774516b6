"""Power lost at each call of a save, a retention, a rollback and a stage: python -m tests.campaigns.power_loss

`tests/record/power_loss.py` records every call that changes the directory and builds the states that a cut may leave.
Checks in each: the newest complete checkpoint is found, the right one, and all that it holds is of one save; a run
that is resumed from there saves, prunes and loads; the record reaches as far as the checkpoint; no file is torn.
"""

import sys
import tempfile
from pathlib import Path

from tests.record import test_power_loss as cuts


def main() -> int:
    """Prints calls and states of each scenario; returns 1 if one failed."""
    memory, failed, total_calls, total_states = Path("/dev/shm"), 0, 0, 0
    trials = {name: lambda folder, name=name: cuts.try_scenario(name, folder) for name in cuts.SCENARIOS}
    trials["a stage's record"] = cuts.try_stage
    for name, trial in trials.items():
        with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
            try:
                calls, states = trial(Path(folder))
            except AssertionError as error:
                failed += 1
                print(f"{name}: FAILED {str(error).splitlines()[0]}")
                continue
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(calls.items()))
        print(f"{name}: {calls.total()} calls ({kinds}), {states:,} states")
        total_calls, total_states = total_calls + calls.total(), total_states + states
    print(f"in all {total_calls} calls, {total_states:,} states, {failed} scenarios failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
