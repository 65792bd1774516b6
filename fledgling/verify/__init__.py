"""Shows that a run's weights come from its recipe and its text: `fledgling verify RUN`. Start with `verify_run`.

    files.py        checkpoints and prepared data by the hashes of their manifests
    seals.py        the record, the manifests and the run's own files by its seals
    added_files.py  files that a run does not have: those that are read are problems, others notes
    stage_order.py  which stages still follow from one another, where an earlier one was trained again
    states.py       what the states of checkpoints count, by the record, the stage before them and replayed steps
    figures.py      the report (`report_page.py`, what may be on it: `page_markup.py`), the sums and the learning rates,
                    recomputed from the record
    steps.py        the data that every step has read, and steps replayed from a checkpoint in a scratch copy, with what
                    they ran with (`segment.py`); in which order, and what was reached: `replay_order.py`; what they
                    show: `step_checks.py`
    scores.py       scores of exams, recomputed from the weights
    check.py        the result of one check
    verify.py       all of it, within a time

A step is replayed by `fledgling.train.run`, which trains: there is no second loop. Nothing is written into the run.
"""

from fledgling.verify.check import Check
from fledgling.verify.verify import verify_run

__all__ = ["Check", "verify_run"]
