"""Whole runs: the stages of a recipe in order (`stages.py`), and within an amount of time or money (`budgeted.py`).

A finished stage is skipped, an interrupted one resumes where it was saved. Before the first step of any, all stages
that are left are checked; a dry run does only that (`dry_run.py`). A run with a budget measures this machine, chooses
its size (`choose.py`) from past runs of the same text (`text_digests.py`) and the bytes of the user's own
(`own_text.py`), writes what it expects to RUN/forecast.json,
and shortens its stages where it slows down; `continued.py` says whether a start continues it.
"""
