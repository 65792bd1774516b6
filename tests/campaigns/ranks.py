"""Ranks that are killed, stopped or raise, each in turn: named in time, started again, the same bits at the end.

    python -m tests.campaigns.ranks                   four ranks x kill, stop, raise
    python -m tests.campaigns.ranks --agents 2        the same over two torchrun agents of two ranks each, on loopback
    python -m tests.campaigns.ranks --ranks 1 --kinds stop

A fault is done to a run from outside, by a signal, once it has trained a few steps. "raise" is SIGUSR2, for which every
process of the campaign has a handler that raises (a sitecustomize.py, see RAISING). The time until a fault is named
runs to the line on stderr; until training goes on, to the next line of metrics.jsonl.
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
from tests.tiny import tiny

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "raise": signal.SIGUSR2}
STEPS, AFTER = 30, 7  # steps of a run, saved every five; the fault comes after so many
LIMIT = 30.0  # seconds until a fault must be named
RAISING = """import signal
def fault(*_):
    raise ArithmeticError("a fault of the campaign")
signal.signal(signal.SIGUSR2, fault)
"""


@dataclass
class Outcome:
    """One case: seconds, and whether all was as it must be."""

    kind: str
    rank: int
    named: float
    again: float
    line: str
    noticed: bool
    same_bits: bool

    @property
    def good(self) -> bool:
        return self.named <= LIMIT and self.noticed and self.same_bits


@dataclass
class Run:
    """A run under one or two agents, and what it says on stderr, with times."""

    out: Path
    agents: list[subprocess.Popen]
    said: list[tuple[float, str]] = field(default_factory=list)

    def listen(self) -> None:
        """Collect the lines of every agent in threads."""
        for agent in self.agents:
            threading.Thread(target=self._read, args=(agent,), daemon=True).start()

    def _read(self, agent: subprocess.Popen) -> None:
        for line in agent.stderr:
            self.said.append((time.time(), line.rstrip()))

    def pid(self, rank: int) -> int | None:
        """The process of a rank, by the environment that its agent gave it."""
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

    def steps(self) -> list[dict]:
        return read_jsonl(self.out / "pretrain" / "metrics.jsonl")

    def until(self, ready, seconds: float = 240.0):
        """Wait for something true, while the run is alive."""
        end = time.time() + seconds
        while not (found := ready()):
            text = "\n".join(line for _, line in self.said[-40:])
            assert time.time() < end, f"not within {seconds} s\n{text}"
            time.sleep(0.05)
        return found

    def end(self) -> None:
        """Wait for all agents; they must succeed."""
        for agent in self.agents:
            code = agent.wait(timeout=240)
            text = "\n".join(line for _, line in self.said[-40:])
            assert code == 0, f"exit code {code}\n{text}"

    def kill(self) -> None:
        for agent in self.agents:
            if agent.poll() is None:
                agent.terminate()
                agent.wait(timeout=60)


def settings_of(out: Path, steps: int) -> dict[str, object]:
    """What the campaign's runs change in the smallest recipe."""
    return {"run.out": out, "pretrain.steps": steps, "pretrain.save_every": 5, "pretrain.batch_tokens": 1024}


def start(folder: Path, name: str, ranks: int = 4, agents: int = 1, steps: int = STEPS) -> Run:
    """Start pretraining of the smallest model in folder/NAME, with `ranks` ranks in all."""
    if not (folder / "site").exists():
        tiny(folder)
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(RAISING)
    out = folder / name
    settings = settings_of(out, steps)
    words = [
        "train",
        "pretrain",
        str(folder / "tiny.toml"),
        *(f"--set={key}={value}" for key, value in settings.items()),
    ]
    paths = [str(folder / "site"), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    if agents == 1:
        commands = [[sys.executable, "-m", "fledgling", *words, "--gpus", str(ranks)]]
    else:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            meeting = f"127.0.0.1:{probe.getsockname()[1]}"
        torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={agents}", "--max-restarts=3"]
        place = [f"--nproc-per-node={ranks // agents}", "--rdzv-backend=c10d", f"--rdzv-endpoint={meeting}"]
        commands = [[*torchrun, *place, "--rdzv-id=campaign", "-m", "fledgling", *words]] * agents
    made = [
        subprocess.Popen(one, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for one in commands
    ]
    run = Run(out, made)
    run.listen()
    return run


def bits(out: Path) -> dict[str, str]:
    """Hashes of the tensors of the last checkpoint."""
    files = checkpoint.verify_checkpoint(checkpoint.find_latest_checkpoint(out / "pretrain" / "checkpoints"))
    return {name: entry["sha256"] for name, entry in files.items() if name.endswith(".safetensors")}


def case(
    folder: Path, kind: str, rank: int, expected: dict[str, str], ranks: int = 4, agents: int = 1, steps: int = STEPS
) -> Outcome:
    """Do one fault to one rank of a run, and see what becomes of it."""
    run = start(folder, f"{kind}-{rank}-{agents}", ranks, agents, steps)
    try:
        run.until(lambda: len(run.steps()) >= AFTER)
        pid = run.pid(rank)
        began = time.time()
        os.kill(pid, SIGNALS[kind])
        told = run.until(lambda: [one for one in run.said if one[1].startswith("fault: ")])
        went_on = run.until(lambda: [line["time"] for line in run.steps() if line["time"] > told[0][0] + 1.5])
        run.end()
    finally:
        run.kill()
    when, line = told[0]
    assert f"rank {rank} (host {socket.gethostname()}, pid {pid})" in line, line
    notices = [one["text"] for one in read_jsonl(run.out / "pretrain" / "notices.jsonl")]
    noticed = line.removeprefix("fault: ") in notices
    return Outcome(kind, rank, when - began, went_on[0] - began, line, noticed, bits(run.out) == expected)


def main() -> int:
    """Run the cases asked for and print a table; exit code 1 where one is not as it must be."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--ranks", type=int, nargs="*", default=[0, 1, 2, 3])
    asked.add_argument("--kinds", nargs="*", default=list(SIGNALS), choices=list(SIGNALS))
    asked.add_argument("--agents", type=int, default=1, choices=(1, 2))
    asked.add_argument("--json", action="store_true")
    options = asked.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = start(folder, "whole", 4, options.agents)
        whole.end()
        expected = bits(whole.out)
        for kind in options.kinds:
            for rank in options.ranks:
                found.append(case(folder, kind, rank, expected, 4, options.agents))
                print(found[-1], file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps([asdict(one) | {"good": one.good} for one in found], indent=2))
    else:
        print("| what is done to it | rank | s until named | s until training again | in the notices | same bits |")
        print("|---|---|---|---|---|---|")
        for one in found:
            figures = f"{one.named:.1f} | {one.again:.1f}"
            noticed, same = ("yes" if true else "no" for true in (one.noticed, one.same_bits))
            print(f"| {one.kind} | {one.rank} | {figures} | {noticed} | {same} |")
    return 0 if all(one.good for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
