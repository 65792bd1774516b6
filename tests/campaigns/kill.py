"""kill -9 at random instants of a training run, again and again: python -m tests.campaigns.kill --count 200 --seed 1

Every shot: a stage of the tiny run starts in a process of its own, is killed, is started again and runs to its end.
Asked of each: a whole checkpoint is the newest, no torn one was left; what is lost is at most one save interval, and
the steps made while the checkpoint after it was being written; and the end is the end of the run never stopped: the
same bytes in every file of every checkpoint, the same lines of metrics, evaluations and samples.

Half of the shots aim at a save: they wait for its temporary directory, for a random number of files in it, and fire.
The processes are forked from this one, which has imported what the run never stopped imported, and computed nothing (a
process whose libraries have started threads must not fork: the suite runs this program, and does not call it). Of
the evaluations only bits per byte is made: the others take longer than training.
With --folder the shots are kept, and the same command goes on after the last one.
"""

import argparse
import contextlib
import ctypes
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from fledgling.config import DEFAULT_STAGES, Recipe, load_recipe
from fledgling.record import checkpoint, read_jsonl
from fledgling.runtime import device
from fledgling.train import run
from tests.tiny import tiny

EVERY, STEPS = 4, 12  # save interval and length of a stage
SETTINGS = {
    f"{stage}.{key}": value for stage in DEFAULT_STAGES for key, value in (("steps", STEPS), ("save_every", EVERY))
}
SETTINGS |= {"model.width": 64, "rl.rewards": "{task = 1.0}"}
OF_THE_CLOCK = {"time", "elapsed", "seconds", "tokens_per_second", "mfu", "memory", "save_stall", "save_seconds"}
OF_THE_CLOCK |= {"rollout_tokens_per_second", "share_rollouts", "share_scoring", "share_update"}
POLL, MOMENT = 0.0005, 0.008  # seconds: between looks for a save, and the longest from what is seen to the shot
PATIENCE = 200  # seconds for a stage of a few
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
FILES = 7  # a save has so many states: none of its files begun, one, ... all six
PREPARING = 8 * len(DEFAULT_STAGES)  # of so many shots one begins with nothing, not even a tokenizer


def start(recipe: Recipe, stage: str, log: Path, modules: Path | None = None) -> int:
    """Run a stage in a forked process; returns its id. What it ran into is written to `log`, what it imported to
    `modules`."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # nothing outlives the campaign
        device.measure_peak_flops = lambda device, dtype: 1e9  # it takes longer than these stages
        run.run_stage(
            recipe, stage, quiet=True, select_evals=lambda evals: tuple(e for e in evals if e.name == "bits_per_byte")
        )
        if modules is not None:
            modules.write_text(json.dumps(sorted(sys.modules)))
        code = 0
    except BaseException:
        log.write_text(traceback.format_exc())
    finally:
        os._exit(code)


def finished(child: int) -> bool:
    """Whether a process has ended by itself; leaves it to be waited for."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def end(child: int, kill: bool = False) -> int:
    """Wait for a process, killed first if asked to; then end what it may have left running. One that hangs is an
    error."""
    until = time.monotonic() + PATIENCE
    while not (kill or finished(child)):
        kill = time.monotonic() > until
        time.sleep(0.01)
    if kill:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return code


def writing(checkpoints: Path) -> int | None:
    """The step whose save is under way, or was when its process died."""
    try:
        names = os.listdir(checkpoints)
    except FileNotFoundError:
        return None
    steps = [int(found[1]) for name in names if (found := re.fullmatch(r"\.tmp-step-(\d+)-\d+", name))]
    return max(steps, default=None)


class Range:
    """A folder with the recipe, the run never stopped (`whole`), and the run that is shot at (`run`)."""

    def __init__(self, folder: Path, stages: tuple[str, ...] = DEFAULT_STAGES) -> None:
        self.folder, self.log = folder, folder / "error.txt"
        times = folder / "times.json"
        if not times.exists():
            tiny(folder, **SETTINGS)
        self.recipe = load_recipe(folder / "tiny.toml", [f"{key}={value}" for key, value in SETTINGS.items()])
        self.run, self.whole = Path(self.recipe.run.out), folder / "whole"
        if not times.exists():
            shutil.rmtree(self.run, ignore_errors=True)
            found = {stage: self._whole(stage) for stage in stages}
            shutil.rmtree(self.whole, ignore_errors=True)
            shutil.copytree(self.run, self.whole)
            times.write_text(json.dumps(found))
        self.times = json.loads(times.read_text())
        for stage in self.times:
            for name in json.loads((folder / f"modules-{stage}.json").read_text()):
                with contextlib.suppress(Exception):
                    importlib.import_module(name)

    def _whole(self, stage: str) -> float:
        """Run a stage to its end; returns its seconds."""
        began = time.monotonic()
        if end(start(self.recipe, stage, self.log, self.folder / f"modules-{stage}.json")):
            raise SystemExit(f"the run to compare with failed: {self.error()}")
        return time.monotonic() - began

    def error(self) -> str:
        """What the process that failed last ran into."""
        told = self.log.read_text().strip() if self.log.exists() else ""
        return told.splitlines()[-1] if told else f"no word of it; nothing for {PATIENCE} s?"

    def set_up(self, stage: str) -> None:
        """The run as it was before the stage: all earlier ones finished, tokenizer and data prepared."""
        shutil.rmtree(self.run, ignore_errors=True)
        later = DEFAULT_STAGES[DEFAULT_STAGES.index(stage) :]
        shutil.copytree(self.whole, self.run, ignore=shutil.ignore_patterns(*later))

    def aim(self, stage: str, in_a_save: bool, chance: random.Random) -> Callable[[int], bool]:
        """A function that waits for the instant to fire; False when the process ended before."""
        if not in_a_save:
            delay = chance.uniform(0, self.times[stage])

            def wait(child: int) -> bool:
                until = time.monotonic() + delay
                while time.monotonic() < until:
                    if finished(child):
                        return False
                    time.sleep(min(0.01, max(0.0, until - time.monotonic())))
                return not finished(child)

            return wait
        step, files = chance.randrange(EVERY, STEPS + 1, EVERY), chance.randrange(FILES)
        delay, checkpoints = chance.uniform(0, MOMENT), self.run / stage / "checkpoints"

        def wait_for_save(child: int) -> bool:
            while writing(checkpoints) != step:
                if finished(child):
                    return False
                time.sleep(POLL)
            with contextlib.suppress(StopIteration, FileNotFoundError):  # it was faster: fire all the same
                temporary = next(checkpoints.glob(f".tmp-step-{step:08d}-*"))
                while len(os.listdir(temporary)) < files:
                    time.sleep(POLL)
            time.sleep(delay)
            return not finished(child)

        return wait_for_save

    def shoot(self, number: int, seed: int) -> dict:
        """Shot `number`: kill, look, go on, compare. What was found, with the broken promises as `problems`."""
        stages = list(self.times)
        stage, in_a_save = stages[number % len(stages)], number // len(stages) % 2 == 0
        chance, here, tries, problems = random.Random(f"{seed}-{number}"), self.run / stage, 0, []
        while True:
            self.set_up(stage)
            if number % PREPARING == len(stages):  # one that is fired at any time, so also while data is prepared
                shutil.rmtree(self.run)
            tries += 1
            wait = self.aim(stage, in_a_save, chance)
            child = start(self.recipe, stage, self.log)
            code = end(child, kill=wait(child))
            under_way = writing(here / "checkpoints")
            if code > 0:
                problems.append(self.error())
            if code and (under_way is not None or not in_a_save):
                break  # a run that was faster than the shot, and a save that was, are not counted
        newest = checkpoint.find_latest_checkpoint(here / "checkpoints", warn=problems.append)
        resumed = int(newest.name[5:13]) if newest else 0
        steps = [line["step"] for line in read_jsonl(here / "metrics.jsonl")]
        made = max(steps, default=0)
        due = made // EVERY * EVERY  # the newest save that was asked for, published or not
        if made - resumed > EVERY + made - due:
            problems.append(f"{made - resumed} steps lost")
        if end(start(self.recipe, stage, self.log)):
            problems.append(self.error())
        problems += differences(self.whole, self.run, stage)
        return {
            "shot": number,
            "stage": stage,
            "aimed_at_save": in_a_save,
            "in_a_save": under_way is not None,
            "made": made,
            "resumed": resumed,
            "lost": made - resumed,
            "while_writing": made - due if made - resumed > EVERY else 0,
            "tries": tries,
            "problems": problems,
        }


def differences(whole: Path, again: Path, stage: str) -> list[str]:
    """Files of the stage, its tokenizer and data that are not as in the run never stopped."""
    found = []
    for place in (Path(stage, "checkpoints"), Path("tokenizer"), Path("data")):
        left = {p.relative_to(whole): p for p in (whole / place).rglob("*") if p.is_file()}
        right = {p.relative_to(again): p for p in (again / place).rglob("*") if p.is_file()}
        missing = left.keys() - right.keys() if place.name == "checkpoints" else ()  # later stages prepare more data
        found += [f"{name} is only in one" for name in sorted({*missing, *(right.keys() - left.keys())})]
        for name in sorted(left.keys() & right.keys()):
            if name.name != "training.json" and left[name].read_bytes() != right[name].read_bytes():
                found.append(f"{name} differs")
    for name in ("metrics", "evals", "samples"):
        lines = [lasting(root / stage / f"{name}.jsonl") for root in (whole, again)]
        if lines[0] != lines[1]:
            found.append(f"{stage}/{name}.jsonl differs")
    return found


def lasting(path: Path) -> list[dict]:
    """The lines of a file without what depends on the clock."""
    return [{key: value for key, value in line.items() if key not in OF_THE_CLOCK} for line in read_jsonl(path)]


def campaign(folder: Path, count: int, seed: int, stages: tuple[str, ...], say: Callable[[str], None]) -> list[dict]:
    """Fire what is missing of `count` shots; returns all, in order."""
    ground, kept = Range(folder, stages), folder / f"shots-{seed}.jsonl"
    done = {shot["shot"]: shot for shot in read_jsonl(kept)}
    began = time.monotonic()
    for fired, number in enumerate([n for n in range(count) if n not in done], 1):
        done[number] = ground.shoot(number, seed)
        with open(kept, "a") as file:
            file.write(json.dumps(done[number]) + "\n")
        left = (time.monotonic() - began) / fired * (count - len(done))
        say(f"shot {len(done)}/{count}, {sum(bool(s['problems']) for s in done.values())} failed, {left:.0f} s left")
    return [done[number] for number in sorted(done)]


def summary(shots: list[dict]) -> str:
    """What was counted, in lines."""
    lines = []
    for stage in dict.fromkeys(shot["stage"] for shot in shots):
        mine = [shot for shot in shots if shot["stage"] == stage]
        inside = sum(shot["in_a_save"] for shot in mine)
        most = max((shot["lost"] for shot in mine), default=0)
        failed = sum(bool(shot["problems"]) for shot in mine)
        lines.append(
            f"{stage:9} {len(mine):4} kills, {inside:3} inside a save; {most:2} steps lost at most; {failed} failed"
        )
    over = [shot for shot in shots if shot["lost"] > EVERY]
    more = max((shot["while_writing"] for shot in over), default=0)
    inside = sum(shot["in_a_save"] for shot in shots)
    sound = sum(not shot["problems"] for shot in shots)
    lines.append(f"{len(shots)} kills, {inside} inside a save: {sound} resumed and ended with the same bits")
    lines.append(
        f"{len(over)} lost more than the interval of {EVERY} steps: those made while the save after it was being "
        f"written, {more} at most"
    )
    lines += [f"shot {shot['shot']} ({shot['stage']}): {problem}" for shot in shots for problem in shot["problems"]]
    return "\n".join(lines)


def main() -> int:
    """Fire, print, and say by the exit code whether every promise was kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=len(DEFAULT_STAGES), help="of the stages, only the first so many")
    parser.add_argument("--folder", type=Path, help="where to work and to go on; default: one that is deleted")
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="kill-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        stages = DEFAULT_STAGES[: asked.first]
        shots = campaign(folder.absolute(), asked.count, asked.seed, stages, lambda text: print(text, file=sys.stderr))
    finally:
        if asked.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(summary(shots))
    return 1 if any(shot["problems"] for shot in shots) else 0


if __name__ == "__main__":
    sys.exit(main())
