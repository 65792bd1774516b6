"""`fledgling watch`: a live page of runs, while they train and afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fledgling.cli.listen import check_port, check_sites, choose_api_key, is_loopback, listen
from fledgling.cli.options import Host, Port, Repeated, print_to_stderr
from fledgling.config import UserError
from fledgling.config.load import recipe_names
from fledgling.config.run_marks import is_run_directory, require_watchable

WATCH_PORT = 8008
NICENESS = 10  # the watcher computes only where the run leaves a processor idle
MAX_RUNS = 12
STOP_SECONDS = 5
PARENT_SECONDS = 0.5  # between two looks whether the run's process lives
ACCOMPANY = (
    "import sys; from fledgling.cli.watch import accompany; sys.exit(accompany(int(sys.argv[1]), *sys.argv[2:]))"
)


def watch(
    *runs: Path,
    host: Host = "127.0.0.1",
    port: Port = WATCH_PORT,
    api_key: str | None = None,
    allow_host: Repeated = (),
) -> int:
    """Watch runs on a page: charts, evaluations, samples, the batch, the machine; buttons that stop, sample, evaluate.

    A run need not have started. The page and the run may stop and start again in any order.

    Parameters
    ----------
    runs
        Run directories, such as runs/quickstart; several are drawn into one chart.
    api_key
        The key that the page asks for; default FLEDGLING_API_KEY.
    allow_host
        A further name of this server, such as a container's or a proxy's; may be repeated.
    """
    runs = tuple(dict.fromkeys(runs))
    if not 1 <= len(runs) <= MAX_RUNS:
        raise UserError(f"watch: got {len(runs)} runs, expected 1 to {MAX_RUNS}: fledgling watch runs/quickstart")
    lines = [line + suggest_run(run) for run in runs if (line := require_watchable(run))]
    check_port(port)
    check_sites(allow_host, ())
    key = choose_api_key(host, api_key)
    from fledgling.serve.connections import ConnectionLimits
    from fledgling.serve.server import Server
    from fledgling.watch.app import WatchAccess, WatchedRuns, make_watch_app

    listener, url = listen(host, port)
    names = ("localhost", "127.0.0.1", "[::1]", *(name.lower() for name in allow_host))
    hosts = names if is_loopback(host) else None
    app = make_watch_app(WatchedRuns(runs), WatchAccess(key, hosts))
    with suppress(OSError):
        os.nice(NICENESS)
    for line in lines:
        print_to_stderr(line)
    print(url, flush=True)
    print(f"watching {', '.join(map(str, runs))}; Ctrl-C stops the page, and not a run", file=sys.stderr)
    Server(app, ConnectionLimits()).run(sockets=[listener])
    return 0


def suggest_run(run: Path) -> str:
    """Returns a hint at runs/NAME, to be appended, where that is a run or NAME a recipe; "" else."""
    other = Path("runs") / run
    return f"; do you mean {other}?" if str(run) in recipe_names() or is_run_directory(other) else ""


@contextmanager
def watching(run: str, port: int, enabled: bool) -> Iterator[None]:
    """Runs `fledgling watch RUN` in a process of its own during the block, where `enabled` and the port is free."""
    if not enabled:
        yield
        return
    try:
        listen("127.0.0.1", port, "--watch-port")[0].close()
    except UserError as error:
        print(f"no page is shown: {error}", file=sys.stderr)
        yield
        return
    words = [sys.executable, "-c", ACCOMPANY, str(os.getpid()), run, str(port)]
    process = subprocess.Popen(words, start_new_session=True)  # Ctrl-C reaches the run alone
    try:
        yield
    finally:
        was_shown = process.poll() is None and is_run_directory(Path(run))  # else it has failed, or no run began
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        if was_shown:
            print(f"the page is closed; fledgling watch {run} shows it again", file=sys.stderr)


def accompany(parent: int, run: str, port: str) -> int:
    """Watches a run until the process `parent` ends, however it ends: a page that is left would keep its port."""

    def wait_for_parent() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    from fledgling.cli import main

    threading.Thread(target=wait_for_parent, daemon=True).start()
    return main(["watch", run, "--port", port])
