"""kill -9 at random moments of a training run: python -m tests.campaigns.kill --count 200 --seed 1

Every shot: a stage of the run of all stages starts in its own process, is killed, is started again and runs to its end.
The checks: the newest checkpoint is valid and no torn one remains; at most one save interval is lost, and the steps
made while the checkpoint after it was being written; and the end equals that of a run that was never stopped: the same
bytes in every file of every checkpoint, the same lines of metrics, evaluations and samples.

Half of the shots aim at a save: they wait for its temporary directory and for a random number of files in it. The
processes are forked from this one, which has imported what the reference run imported, and computed nothing (a process
whose libraries have started threads must not fork: the test suite starts this program in a process). Only bits per byte
is evaluated, because the others take longer than training. With --folder the shots are stored, and the
same command resumes after the last one.
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
from fledgling.record.jsonl import append_line
from fledgling.runtime import device
from fledgling.train import run
from fledgling.train.hooks import StageHooks
from tests.all_stages import make_all_stages_recipe

EVERY, STEPS = 4, 12  # save interval and length of a stage
SETTINGS = {
    f"{stage}.{key}": value for stage in DEFAULT_STAGES for key, value in (("steps", STEPS), ("save_every", EVERY))
}
SETTINGS |= {"model.width": 64, "rl.rewards": "{task = 1.0}"}
TIMING_KEYS = {"time", "elapsed", "seconds", "tokens_per_second", "mfu", "memory", "save_stall", "save_seconds"}
TIMING_KEYS |= {"rollout_tokens_per_second", "share_rollouts", "share_scoring", "share_update"}
TIMING_KEYS |= {"training_seconds", "peak_flops"}
POLL, MAX_DELAY = 0.0005, 0.008  # seconds: between checks for a save, and the longest from a match to the shot
STAGE_TIMEOUT = 200  # seconds for a stage that takes a few
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
FILE_COUNTS = 7  # states of a save: none of its files begun, one, ... all six
PREPARE_EVERY = 8 * len(DEFAULT_STAGES)  # once in this many shots one starts from an empty run directory


def start_stage(recipe: Recipe, stage: str, log: Path, modules: Path | None = None) -> int:
    """Runs a stage in a forked process and returns its pid. Writes its error to `log`, the modules that it imported to
    `modules`."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # no process outlives the campaign
        device.measure_peak_flops = lambda device, dtype: 1e9  # it takes longer than these stages
        hooks = StageHooks(select_evals=lambda evals: tuple(e for e in evals if e.name == "bits_per_byte"))
        run.run_stage(recipe, stage, quiet=True, hooks=hooks)
        if modules is not None:
            modules.write_text(json.dumps(sorted(sys.modules)))
        code = 0
    except BaseException:
        log.write_text(traceback.format_exc())
    finally:
        os._exit(code)


def has_finished(child: int) -> bool:
    """Returns whether a process has ended by itself; it still has to be waited for."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait_for(child: int, kill: bool = False) -> int:
    """Waits for a process, after killing it where requested; then kills what it left running. A process that hangs is
    killed."""
    deadline = time.monotonic() + STAGE_TIMEOUT
    while not (kill or has_finished(child)):
        kill = time.monotonic() > deadline
        time.sleep(0.01)
    if kill:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return code


def step_being_saved(checkpoints: Path) -> int | None:
    """Returns the step whose save is under way, or was when its process died."""
    try:
        names = os.listdir(checkpoints)
    except FileNotFoundError:
        return None
    steps = [int(match[1]) for name in names if (match := re.fullmatch(r"\.tmp-step-(\d+)-\d+", name))]
    return max(steps, default=None)


class Range:
    """A folder with the recipe, the reference run that is never stopped, and the run that is killed (`run`)."""

    def __init__(self, folder: Path, stages: tuple[str, ...] = DEFAULT_STAGES) -> None:
        self.folder, self.log = folder, folder / "error.txt"
        times = folder / "times.json"
        if not times.exists():
            make_all_stages_recipe(folder, **SETTINGS)
        self.recipe = load_recipe(folder / "all_stages.toml", [f"{key}={value}" for key, value in SETTINGS.items()])
        self.run, self.reference = Path(self.recipe.run.out), folder / "reference"
        if not times.exists():
            shutil.rmtree(self.run, ignore_errors=True)
            seconds = {stage: self._run_reference(stage) for stage in stages}
            shutil.rmtree(self.reference, ignore_errors=True)
            shutil.copytree(self.run, self.reference)
            times.write_text(json.dumps(seconds))
        self.times = json.loads(times.read_text())
        for stage in self.times:
            for name in json.loads((folder / f"modules-{stage}.json").read_text()):
                with contextlib.suppress(Exception):
                    importlib.import_module(name)

    def _run_reference(self, stage: str) -> float:
        """Runs a stage to its end and returns its seconds."""
        began = time.monotonic()
        if wait_for(start_stage(self.recipe, stage, self.log, self.folder / f"modules-{stage}.json")):
            raise SystemExit(f"the run to compare with failed: {self.error()}")
        return time.monotonic() - began

    def error(self) -> str:
        """Returns the last line of the error of the process that failed last."""
        text = self.log.read_text().strip() if self.log.exists() else ""
        return text.splitlines()[-1] if text else f"no error was written; did it hang for {STAGE_TIMEOUT} s?"

    def restore_run(self, stage: str) -> None:
        """Restores the run as it was before the stage: earlier stages finished, tokenizer and data prepared."""
        shutil.rmtree(self.run, ignore_errors=True)
        later = DEFAULT_STAGES[DEFAULT_STAGES.index(stage) :]
        shutil.copytree(self.reference, self.run, ignore=shutil.ignore_patterns(*later))

    def make_wait(self, stage: str, in_a_save: bool, generator: random.Random) -> Callable[[int], bool]:
        """Returns a function that waits for the moment of the kill; it returns False when the process ended before."""
        if not in_a_save:
            delay = generator.uniform(0, self.times[stage])

            def wait(child: int) -> bool:
                deadline = time.monotonic() + delay
                while time.monotonic() < deadline:
                    if has_finished(child):
                        return False
                    time.sleep(min(0.01, max(0.0, deadline - time.monotonic())))
                return not has_finished(child)

            return wait
        step, files = generator.randrange(EVERY, STEPS + 1, EVERY), generator.randrange(FILE_COUNTS)
        delay, checkpoints = generator.uniform(0, MAX_DELAY), self.run / stage / "checkpoints"

        def wait_for_save(child: int) -> bool:
            while step_being_saved(checkpoints) != step:
                if has_finished(child):
                    return False
                time.sleep(POLL)
            with contextlib.suppress(StopIteration, FileNotFoundError):  # the save was faster: kill all the same
                temporary = next(checkpoints.glob(f".tmp-step-{step:08d}-*"))
                while len(os.listdir(temporary)) < files:
                    time.sleep(POLL)
            time.sleep(delay)
            return not has_finished(child)

        return wait_for_save

    def run_shot(self, number: int, seed: int) -> dict:
        """Runs shot `number`: kill, check, resume, compare. Returns what was counted; failed checks are `problems`."""
        stages = list(self.times)
        stage, in_a_save = stages[number % len(stages)], number // len(stages) % 2 == 0
        generator, stage_dir, tries, problems = random.Random(f"{seed}-{number}"), self.run / stage, 0, []
        while True:
            self.restore_run(stage)
            if number % PREPARE_EVERY == len(stages):  # a kill at any time, also while data is prepared
                shutil.rmtree(self.run)
            tries += 1
            wait = self.make_wait(stage, in_a_save, generator)
            child = start_stage(self.recipe, stage, self.log)
            code = wait_for(child, kill=wait(child))
            under_way = step_being_saved(stage_dir / "checkpoints")
            if code > 0:
                problems.append(self.error())
            if code and (under_way is not None or not in_a_save):
                break  # a run or a save that ended before the kill is not counted
        newest = checkpoint.find_latest_checkpoint(stage_dir / "checkpoints", warn=problems.append)
        resumed = int(newest.name[5:13]) if newest else 0
        steps = [line["step"] for line in read_jsonl(stage_dir / "metrics.jsonl")]
        made = max(steps, default=0)
        due = made // EVERY * EVERY  # the newest save that was requested, published or not
        if made - resumed > EVERY + made - due:
            problems.append(f"{made - resumed} steps lost")
        if wait_for(start_stage(self.recipe, stage, self.log)):
            problems.append(self.error())
        problems += find_differences(self.reference, self.run, stage)
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


def find_differences(reference: Path, again: Path, stage: str) -> list[str]:
    """Returns the files of the stage, its tokenizer and data that differ from the reference run."""
    different = []
    for place in (Path(stage, "checkpoints"), Path("tokenizer"), Path("data")):
        left = {p.relative_to(reference): p for p in (reference / place).rglob("*") if p.is_file()}
        right = {p.relative_to(again): p for p in (again / place).rglob("*") if p.is_file()}
        missing = left.keys() - right.keys() if place.name == "checkpoints" else ()  # later stages prepare more data
        different += [f"{name} is only in one" for name in sorted({*missing, *(right.keys() - left.keys())})]
        for name in sorted(left.keys() & right.keys()):
            if name.name != "training.json" and read_comparable(left[name]) != read_comparable(right[name]):
                different.append(f"{name} differs")
    for name in ("metrics", "evals", "samples"):
        lines = [read_without_times(root / stage / f"{name}.jsonl") for root in (reference, again)]
        if lines[0] != lines[1]:
            different.append(f"{stage}/{name}.jsonl differs")
    return different


def read_comparable(path: Path) -> object:
    """Returns the part of a file that equals that of another run: all but the seconds of a state, and its hash."""
    if path.name == "state.json":
        state = json.loads(path.read_bytes())
        return {**state, "totals": {**state.get("totals", {}), "training_seconds": None}}
    if path.name == "manifest.json" and path.with_name("state.json").exists():
        manifest = json.loads(path.read_bytes())
        return {**manifest, "files": {name: entry for name, entry in manifest["files"].items() if name != "state.json"}}
    return path.read_bytes()


def read_without_times(path: Path) -> list[dict]:
    """Returns the lines of a file without the keys that depend on the clock."""
    return [{key: value for key, value in line.items() if key not in TIMING_KEYS} for line in read_jsonl(path)]


def run_campaign(
    folder: Path, count: int, seed: int, stages: tuple[str, ...], log: Callable[[str], None]
) -> list[dict]:
    """Runs what is missing of `count` shots; returns all, in order."""
    ground, kept = Range(folder, stages), folder / f"shots-{seed}.jsonl"
    done = {shot["shot"]: shot for shot in read_jsonl(kept)}
    began = time.monotonic()
    for fired, number in enumerate([n for n in range(count) if n not in done], 1):
        done[number] = ground.run_shot(number, seed)
        append_line(kept, done[number])
        left = (time.monotonic() - began) / fired * (count - len(done))
        log(f"shot {len(done)}/{count}, {sum(bool(s['problems']) for s in done.values())} failed, {left:.0f} s left")
    return [done[number] for number in sorted(done)]


def summarize(shots: list[dict]) -> str:
    """Formats what was counted."""
    lines = []
    for stage in dict.fromkeys(shot["stage"] for shot in shots):
        stage_shots = [shot for shot in shots if shot["stage"] == stage]
        inside = sum(shot["in_a_save"] for shot in stage_shots)
        most = max((shot["lost"] for shot in stage_shots), default=0)
        failed = sum(bool(shot["problems"]) for shot in stage_shots)
        lines.append(
            f"{stage:9} {len(stage_shots):4} kills, {inside:3} inside a save; {most:2} steps lost at most; "
            f"{failed} failed"
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
    """Runs the shots and prints the counts; returns 1 when a check failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=len(DEFAULT_STAGES), help="run only the first N stages")
    parser.add_argument(
        "--folder", type=Path, help="where shots are stored and continued; default: a folder that is deleted"
    )
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="kill-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        stages = DEFAULT_STAGES[: options.first]
        shots = run_campaign(
            folder.absolute(), options.count, options.seed, stages, lambda text: print(text, file=sys.stderr)
        )
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(summarize(shots))
    return 1 if any(shot["problems"] for shot in shots) else 0


if __name__ == "__main__":
    sys.exit(main())
