"""Shows that a run's weights come from its recipe and its text: `fledgling verify RUN`. Start with `verify_run`.

    files.py        every file by its hash: checkpoints, prepared data, the record by its seals
    stage_order.py  which stages still follow from one another, where an earlier one was trained again
    figures.py      the report (`report_page.py`, what may be on it: `page_markup.py`), the sums and the learning rates,
                    recomputed from the record
    steps.py        the data that every step has read, and steps replayed from a checkpoint in a scratch copy, with what
                    they ran with (`segment.py`)
    scores.py       scores of exams, recomputed from the weights
    check.py        the result of one check
    verify.py       all of it, within a time

A step is replayed by `fledgling.train.run`, which trains: there is no second loop. Nothing is written into the run.
"""

from fledgling.verify.check import Check
from fledgling.verify.verify import verify_run

__all__ = ["Check", "verify_run"]
