"""Exit codes: what a process that ends tells whoever started it (docs/launch.md has the table).

The one idea: a code says what to do next. STOPPED: run the same command again. FAILED: read the line, change something.
FAULT: something broke that may not break again; an agent starts the ranks again. 128 + n: left at once by signal n.
"""

DONE = 0
FAILED = 1  # a user's mistake, in one line
USAGE_ERROR = 2  # of the command line
FAULT = 70  # a bug, or a rank that died, hung or raised (EX_SOFTWARE)
STOPPED = 75  # asked to stop, and all is saved (EX_TEMPFAIL)
INTERRUPTED = 130  # 128 + SIGINT
BROKEN_PIPE = 141  # 128 + SIGPIPE

NO_RESTART_CODES = (DONE, FAILED, USAGE_ERROR, STOPPED)  # starting again would not help, or is not wanted
