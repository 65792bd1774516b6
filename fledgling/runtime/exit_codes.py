"""Exit codes: what a process reports to the program that started it (table in docs/launch.md).

STOPPED: run the same command again. FAILED: read the error line and change something. FAULT: something broke that may
work the next time; the launcher restarts the ranks. 128 + n: the process ended at once because of signal n.
"""

DONE = 0
FAILED = 1  # a user's mistake, reported in one line
USAGE_ERROR = 2  # a mistake on the command line
FAULT = 70  # a bug, or a rank that died, hung or raised (EX_SOFTWARE)
STOPPED = 75  # stopped on request, everything is saved (EX_TEMPFAIL)
INTERRUPTED = 130  # 128 + SIGINT
BROKEN_PIPE = 141  # 128 + SIGPIPE

NO_RESTART_CODES = (DONE, FAILED, USAGE_ERROR, STOPPED)  # a restart does not help, or is not wanted
