"""The names of evaluations: which wordings an exam is in, which of them are quoted, and on how much they were measured.

An exam of a skill is called after its task and its set of wordings (fledgling/tasks/task.py). Recipes are tuned by the
dev wordings, so that their score says little about new ones: only the test is quoted.
"""

from __future__ import annotations

from collections.abc import Collection

# The end of an exam's name, and the wordings that its questions are in.
WORDINGS = {"_test": "test", "": "train", "_practice": "practice", "_dev": "dev"}
# Those of older versions: of reinforcement learning's prompts, and 24 wordings by which recipes have been tuned since.
WORDINGS |= {"_practised": "practised", "_unseen": "unseen"}


def split_evaluation_name(name: str) -> tuple[str, str]:
    """Returns the task and the end of an exam's name that says its wordings: one of WORDINGS, "" for a plain name."""
    end = next((end for end in WORDINGS if end and name.endswith(end)), "")
    return name.removesuffix(end), end


def is_quoted(name: str, names: Collection[str]) -> bool:
    """Returns whether an evaluation is for quoting: of a skill its test alone, of everything else all.

    names: of all evaluations.
    """
    task, end = split_evaluation_name(name)
    return end == "_test" or (not end and f"{task}_test" not in names and f"{task}_unseen" not in names)


def evaluation_label(name: str, names: Collection[str] = ()) -> str:
    """Returns the display name of an evaluation; `names` are all that the run has.

    A task with exams in several sets of wordings has each named by its set.
    """
    task, end = split_evaluation_name(name)
    has_sets = any(task + other in names for other in WORDINGS if other)
    return task.replace("_", " ") + (f", {WORDINGS[end]} wordings" if end or has_sets else "")


def format_cases(n: int | None, clusters: int | None = None, cluster_unit: str | None = None) -> str:
    """Returns what a value was measured on, such as `200, 64 wordings`; only n where all cases are independent."""
    count = "-" if n is None else f"{n:,}"
    return f"{count}, {clusters:,} {cluster_unit}" if clusters and clusters != n and cluster_unit else count
