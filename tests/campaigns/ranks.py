"""Ranks that are killed, stopped or raise, each in turn: named in time, restarted, and the same bits at the end.

    python -m tests.campaigns.ranks                   four ranks x kill, stop, raise
    python -m tests.campaigns.ranks --agents 2        the same over two torchrun agents of two ranks each, on loopback
    python -m tests.campaigns.ranks --ranks 1 --kinds stop

A signal from outside causes the fault, once the run has trained a few steps. "raise" is SIGUSR2, for which every
process of the campaign has a handler that raises (a sitecustomize.py, see RAISE_ON_SIGNAL). The time until a fault is
named ends with the line on stderr; the time until training continues ends with the next line of metrics.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fledgling.record import checkpoint, read_jsonl
from tests.all_stages import make_all_stages_recipe
from tests.ranks import choose_port

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "raise": signal.SIGUSR2}
STEPS, FAULT_STEP = 30, 7  # steps of a run, saved every five; the step after which the fault comes
NAMING_LIMIT = 30.0  # seconds until a fault must be named
RAISE_ON_SIGNAL = """import signal
def fault(*_):
    raise ArithmeticError("a fault of the campaign")
signal.signal(signal.SIGUSR2, fault)
"""


@dataclass
class Outcome:
    """The outcome of one case: seconds until the fault was named and until training continued, and the checks."""

    kind: str
    rank: int
    named: float
    resumed: float
    line: str
    noticed: bool
    same_bits: bool

    @property
    def ok(self) -> bool:
        return self.named <= NAMING_LIMIT and self.noticed and self.same_bits


@dataclass
class Run:
    """A run under one or two agents, and its lines on stderr with their times."""

    out: Path
    agents: list[subprocess.Popen]
    log: list[tuple[float, str]] = field(default_factory=list)

    def collect_lines(self) -> None:
        """Collects the lines of every agent in threads."""
        for agent in self.agents:
            threading.Thread(target=self._read, args=(agent,), daemon=True).start()

    def _read(self, agent: subprocess.Popen) -> None:
        for line in agent.stderr:
            self.log.append((time.time(), line.rstrip()))

    def find_pid(self, rank: int) -> int | None:
        """Returns the process of a rank, by the environment that its agent gave it."""
        for agent in self.agents:
            for entry in Path("/proc").glob("[0-9]*"):
                try:
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    variables = (entry / "environ").read_bytes().split(b"\0")
                except OSError:
                    continue
                if parent == agent.pid and f"RANK={rank}".encode() in variables:
                    return int(entry.name)
        return None

    def read_metrics(self) -> list[dict]:
        return read_jsonl(self.out / "pretrain" / "metrics.jsonl")

    def wait_until(self, ready, seconds: float = 240.0):
        """Waits until `ready` returns something true, and returns that."""
        end = time.time() + seconds
        while not (result := ready()):
            text = "\n".join(line for _, line in self.log[-40:])
            assert time.time() < end, f"not within {seconds} s\n{text}"
            time.sleep(0.05)
        return result

    def wait(self) -> None:
        """Waits for all agents, which must succeed."""
        for agent in self.agents:
            code = agent.wait(timeout=240)
            text = "\n".join(line for _, line in self.log[-40:])
            assert code == 0, f"exit code {code}\n{text}"

    def kill(self) -> None:
        for agent in self.agents:
            if agent.poll() is None:
                agent.terminate()
                agent.wait(timeout=60)


def make_settings(out: Path, steps: int) -> dict[str, object]:
    """Returns the settings that the campaign's runs change in the smallest recipe."""
    return {"run.out": out, "pretrain.steps": steps, "pretrain.save_every": 5, "pretrain.batch_tokens": 1024}


def start_run(folder: Path, name: str, ranks: int = 4, agents: int = 1, steps: int = STEPS) -> Run:
    """Starts pretraining of the smallest model in folder/NAME, with `ranks` ranks in all."""
    if not (folder / "site").exists():
        make_all_stages_recipe(folder)
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(RAISE_ON_SIGNAL)
    out = folder / name
    settings = make_settings(out, steps)
    arguments = [
        "train",
        "pretrain",
        str(folder / "all_stages.toml"),
        *(f"--set={key}={value}" for key, value in settings.items()),
    ]
    paths = [str(folder / "site"), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    if agents == 1:
        commands = [[sys.executable, "-m", "fledgling", *arguments, "--gpus", str(ranks)]]
    else:
        endpoint = f"127.0.0.1:{choose_port()}"
        torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={agents}", "--max-restarts=3"]
        place = [f"--nproc-per-node={ranks // agents}", "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}"]
        commands = [[*torchrun, *place, "--rdzv-id=campaign", "-m", "fledgling", *arguments]] * agents
    processes = [
        subprocess.Popen(one, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for one in commands
    ]
    run = Run(out, processes)
    run.collect_lines()
    return run


def hash_tensors(out: Path) -> dict[str, str]:
    """Returns the hashes of the tensor files of the last checkpoint."""
    files = checkpoint.verify_checkpoint(checkpoint.find_latest_checkpoint(out / "pretrain" / "checkpoints"))
    return {name: entry["sha256"] for name, entry in files.items() if name.endswith(".safetensors")}


def run_case(
    folder: Path, kind: str, rank: int, expected: dict[str, str], ranks: int = 4, agents: int = 1, steps: int = STEPS
) -> Outcome:
    """Causes one fault in one rank of a run, and returns the outcome."""
    run = start_run(folder, f"{kind}-{rank}-{agents}", ranks, agents, steps)
    try:
        run.wait_until(lambda: len(run.read_metrics()) >= FAULT_STEP)
        pid = run.find_pid(rank)
        began = time.time()
        os.kill(pid, SIGNALS[kind])
        faults = run.wait_until(lambda: [one for one in run.log if one[1].startswith("fault: ")])
        resumed_times = run.wait_until(
            lambda: [line["time"] for line in run.read_metrics() if line["time"] > faults[0][0] + 1.5]
        )
        run.wait()
    finally:
        run.kill()
    when, line = faults[0]
    assert f"rank {rank} (host {socket.gethostname()}, pid {pid})" in line, line
    notices = [one["text"] for one in read_jsonl(run.out / "pretrain" / "notices.jsonl")]
    noticed = line.removeprefix("fault: ") in notices
    return Outcome(kind, rank, when - began, resumed_times[0] - began, line, noticed, hash_tensors(run.out) == expected)


def main() -> int:
    """Runs the requested cases and prints a table; returns 1 when a check failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="*", default=[0, 1, 2, 3])
    parser.add_argument("--kinds", nargs="*", default=list(SIGNALS), choices=list(SIGNALS))
    parser.add_argument("--agents", type=int, default=1, choices=(1, 2))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    outcomes = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reference = start_run(folder, "reference", 4, options.agents)
        reference.wait()
        expected = hash_tensors(reference.out)
        for kind in options.kinds:
            for rank in options.ranks:
                outcomes.append(run_case(folder, kind, rank, expected, 4, options.agents))
                print(outcomes[-1], file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps([asdict(one) | {"ok": one.ok} for one in outcomes], indent=2))
    else:
        print("| fault | rank | s until named | s until training continues | in the notices | same bits |")
        print("|---|---|---|---|---|---|")
        for one in outcomes:
            figures = f"{one.named:.1f} | {one.resumed:.1f}"
            noticed, same = ("yes" if true else "no" for true in (one.noticed, one.same_bits))
            print(f"| {one.kind} | {one.rank} | {figures} | {noticed} | {same} |")
    return 0 if all(one.ok for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
