"""A full disk at each page of a save, and during a reference run: python -m tests.campaigns.full_disk

Uses its own small file system (tmpfs, in a user namespace), whose size grows page by page.

    saves   a save through the background writer, at every size from none to enough: each page of each file is once the
            first that does not fit. Checks: one error line with path and space in the thread that waits, the checkpoint
            before unchanged, no half-written file left; at the size that is enough the save succeeds.
    runs    the first stage of the tiny run, at many sizes from little to more than enough. Checks: one UserError with
            path and space, valid checkpoints only; with more room the same command ends with the bits of a run that
            was never stopped.

Exits with 2 where the kernel denies namespaces.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from fledgling.config import UserError
from fledgling.record import checkpoint
from fledgling.record.writer import BackgroundWriter
from tests.campaigns import kill
from tests.campaigns.flips import make_stage

PAGE, ENOUGH = 4096, 256 * 2**20
ONE_LINE = re.compile(r"cannot write (\S+): No space left on device \((\S+ \w+ needed, )?\S+ \w+ free\)")


def resize(place: Path, size: int) -> None:
    """Resizes the file system at `place` to `size` bytes."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(place)], check=True)


def used_bytes(place: Path) -> int:
    """Returns the bytes in use, in reference pages."""
    return shutil.disk_usage(place).used


def run_saves(place: Path) -> tuple[Counter, list[str]]:
    """Saves at every size; returns how many pages of each file were the first without room, and failed checks."""
    source = make_stage(place)  # its second checkpoint is saved again and again, as the third
    loaded, files = checkpoint.load_checkpoint(source / "step-00000600"), {"tokenizer.json": place / "tokenizer.json"}
    before, taken = sorted(path.name for path in source.iterdir()), used_bytes(place)
    pages = [(name, -(-one["bytes"] // PAGE)) for name, one in checkpoint.verify_checkpoint(loaded.path).items()]
    order = [f"{group}.safetensors" for group in loaded.tensors] + ["state.json", "tokenizer.json"]
    hits = [name for name, count in sorted(pages, key=lambda one: order.index(one[0])) for _ in range(count)]
    hits.append(checkpoint.MANIFEST)
    real_disk_usage = shutil.disk_usage  # replaced: else every save would be rejected before it starts
    shutil.disk_usage = lambda path: real_disk_usage(path)._replace(free=2**40)
    hits_by_file, problems, writer = Counter(), [], BackgroundWriter()
    for free_pages in range(len(hits) + 1):
        resize(place, taken + free_pages * PAGE)
        problem = ""
        try:
            writer.start(lambda: checkpoint.save_checkpoint(source, 900, loaded.tensors, loaded.state, files))
            writer.wait()
        except UserError as error:
            problem = str(error)
        if free_pages == len(hits):
            if problem or checkpoint.find_latest_checkpoint(source).name != "step-00000900":
                problems.append(f"with free_pages for all {free_pages} pages: {problem}")
            continue
        hits_by_file[hits[free_pages]] += 1
        names = sorted(path.name for path in source.iterdir())
        if "step-00000900: No space" not in problem or not ONE_LINE.match(problem):
            problems.append(f"{free_pages} pages: {problem or 'no error'}")
        if names != before or checkpoint.find_latest_checkpoint(source, warn=problems.append).name != "step-00000600":
            problems.append(f"{free_pages} pages left {names}")
    shutil.disk_usage = real_disk_usage
    resize(place, ENOUGH)
    return hits_by_file, problems


def run_stages(ground: kill.Range, sizes: int) -> tuple[int, int, list[str]]:
    """Runs at `sizes` sizes; returns how many stopped, how many of them at a checkpoint, and failed checks."""
    stage, problems, stopped, at_a_save = "pretrain", [], 0, 0
    reference = sum(-(-path.stat().st_size // PAGE) * PAGE for path in ground.reference.rglob("*") if path.is_file())
    last_log = time.monotonic()
    for number in range(sizes):
        for path in ground.run.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        size = reference * 17 * (number + 1) // (10 * sizes) // PAGE * PAGE
        resize(ground.run, size)
        if kill.wait_for(kill.start_stage(ground.recipe, stage, ground.log)) == 0:
            continue
        stopped += 1
        error, checkpoints = ground.error(), ground.run / stage / "checkpoints"
        at_a_save += "step-" in error
        one_line = error.startswith("fledgling.config.UserError: ") and str(ground.run) in error and " free" in error
        if not one_line:
            problems.append(f"{size} bytes: {error}")
        checkpoint.find_latest_checkpoint(checkpoints, warn=problems.append)
        if checkpoints.exists() and any(path.name.startswith(".tmp-") for path in checkpoints.iterdir()):
            problems.append(f"{size} bytes: a half-written save is left")
        resize(ground.run, ENOUGH)
        if kill.wait_for(kill.start_stage(ground.recipe, stage, ground.log)):
            problems.append(f"{size} bytes, then enough: {ground.error()}")
        problems += [f"{size} bytes: {one}" for one in kill.find_differences(ground.reference, ground.run, stage)]
        if time.monotonic() - last_log > 2:
            last_log = time.monotonic()
            print(f"run {number + 1}/{sizes}, {len(problems)} failed checks", file=sys.stderr)
    return stopped, at_a_save, problems


def run_inside(folder: Path, sizes: int) -> int:
    """Runs all checks in a namespace where a file system may be mounted."""
    small = folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ENOUGH}", "tmpfs", str(small)], check=True)
    hits_by_file, problems = run_saves(small)
    for name, count in hits_by_file.items():
        print(f"{name:22} {count:3} pages without room")
    print(f"saves: {hits_by_file.total()} sizes, {len(problems)} failed checks")
    if sizes:
        ground = kill.Range(folder, ("pretrain",))
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ENOUGH}", "tmpfs", str(ground.run)], check=True)
        stopped, at_a_save, more = run_stages(ground, sizes)
        print(f"runs: {sizes} sizes, {stopped} stopped ({at_a_save} at a checkpoint), {len(more)} failed checks")
        problems += more
    print("\n".join(problems), end="\n" if problems else "")
    return 1 if problems else 0


def is_possible() -> bool:
    """Returns whether this kernel allows a namespace in which to mount."""
    command = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs tmpfs /tmp"]
    return bool(shutil.which("unshare")) and subprocess.run(command, capture_output=True).returncode == 0


def main() -> int:
    """Starts this program again inside a namespace, in a folder that is deleted afterwards."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=40, help="number of sizes at which the stage is run; 0: only saves")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        return run_inside(options.inside, options.runs)
    if not is_possible():
        print("no namespaces to mount a file system in: nothing was tested", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        again = [sys.executable, "-m", "tests.campaigns.full_disk", "--runs", str(options.runs), "--inside", folder]
        return subprocess.run(["unshare", "-rm", *again]).returncode


if __name__ == "__main__":
    sys.exit(main())
