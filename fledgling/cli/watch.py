"""`fledgling watch`: a live page of runs, while they train and afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fledgling.cli.listen import check_port, choose_api_key, is_loopback, listen
from fledgling.cli.options import Host, Port, print_to_stderr
from fledgling.config import UserError
from fledgling.config.run_marks import require_watchable

WATCH_PORT = 8008
NICENESS = 10  # the watcher computes only where the run leaves a processor idle
MAX_RUNS = 12
STOP_SECONDS = 5


def watch(
    *runs: Path,
    host: Host = "127.0.0.1",
    port: Port = WATCH_PORT,
    api_key: str | None = None,
) -> int:
    """Watch runs on a page: charts, evaluations, samples, the batch, the machine; buttons that stop, sample, evaluate.

    A run need not have started. The page and the run may stop and start again in any order.

    Parameters
    ----------
    runs
        Run directories, such as runs/quickstart; several are drawn into one chart.
    api_key
        The key that the page asks for; default FLEDGLING_API_KEY.
    """
    if not 1 <= len(runs) <= MAX_RUNS:
        raise UserError(f"watch: got {len(runs)} runs, expected 1 to {MAX_RUNS}: fledgling watch runs/quickstart")
    lines = [line for run in runs if (line := require_watchable(run))]
    check_port(port)
    key = choose_api_key(host, api_key)
    from fledgling.serve.connections import ConnectionLimits
    from fledgling.serve.server import Server
    from fledgling.watch.app import WatchAccess, WatchedRuns, make_watch_app

    listener, url = listen(host, port)
    hosts = ("localhost", "127.0.0.1", "[::1]") if is_loopback(host) else None
    app = make_watch_app(WatchedRuns(runs), WatchAccess(key, hosts))
    with suppress(OSError):
        os.nice(NICENESS)
    for line in lines:
        print_to_stderr(line)
    print(url, flush=True)
    print(f"watching {', '.join(map(str, runs))}; Ctrl-C stops the page, and not a run", file=sys.stderr)
    Server(app, ConnectionLimits()).run(sockets=[listener])
    return 0


@contextmanager
def watching(run: str, port: int, enabled: bool) -> Iterator[None]:
    """Runs `fledgling watch RUN` in a process of its own during the block, where `enabled`."""
    if not enabled:
        yield
        return
    command = [sys.executable, "-m", "fledgling", "watch", run, "--port", str(port)]
    process = subprocess.Popen(command, start_new_session=True)  # Ctrl-C reaches the run alone
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        print(f"the page is closed; fledgling watch {run} shows it again", file=sys.stderr)
