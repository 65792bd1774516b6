"""A full disk at each page of a save, and under a whole run: python -m tests.campaigns.full_disk

Works on a real small file system of its own (tmpfs, in a user namespace), whose size grows page by page.

    saves   a save through the background writer, at every size from none to enough: each page of each file is once the
            first that does not fit. Asked: one line with path and space in the thread that waits, the checkpoint before
            untouched, nothing half-written left; and at the size that is enough it goes through.
    runs    the first stage of the tiny run, at many sizes from little to more than enough. Asked: one UserError
            with path and space, whole checkpoints only; and with room made, the same command ends with the bits of the
            run never stopped.

Exits with 2 where the kernel lends no namespaces.
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
from tests.campaigns.flips import stage_of

PAGE, ENOUGH = 4096, 256 * 2**20
ONE_LINE = re.compile(r"cannot write (\S+): No space left on device \((\S+ \w+ needed, )?\S+ \w+ free\)")


def resize(place: Path, size: int) -> None:
    """Give the file system at `place` room for `size` bytes."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(place)], check=True)


def used(place: Path) -> int:
    """Bytes that are taken, in whole pages."""
    return shutil.disk_usage(place).used


def saves(place: Path) -> tuple[Counter, list[str]]:
    """Save at every size; returns how many pages of each file were the first without room, and broken promises."""
    source = stage_of(place)  # its second checkpoint is saved again and again, as the third
    loaded, files = checkpoint.load_checkpoint(source / "step-00000600"), {"tokenizer.json": place / "tokenizer.json"}
    before, taken = sorted(path.name for path in source.iterdir()), used(place)
    pages = [(name, -(-one["bytes"] // PAGE)) for name, one in checkpoint.verify_checkpoint(loaded.path).items()]
    order = [f"{group}.safetensors" for group in loaded.tensors] + ["state.json", "tokenizer.json"]
    hits = [name for name, count in sorted(pages, key=lambda one: order.index(one[0])) for _ in range(count)]
    hits.append(checkpoint.MANIFEST)
    known = shutil.disk_usage  # as told, there is always room: else every save would be refused before it begins
    shutil.disk_usage = lambda path: known(path)._replace(free_tokens=2**40)
    found, problems, writer = Counter(), [], BackgroundWriter()
    for room in range(len(hits) + 1):
        resize(place, taken + room * PAGE)
        problem = ""
        try:
            writer.start(lambda: checkpoint.save_checkpoint(source, 900, loaded.tensors, loaded.state, files))
            writer.wait()
        except UserError as error:
            problem = str(error)
        if room == len(hits):
            if problem or checkpoint.find_latest_checkpoint(source).name != "step-00000900":
                problems.append(f"with room for all {room} pages: {problem}")
            continue
        found[hits[room]] += 1
        names = sorted(path.name for path in source.iterdir())
        if "step-00000900: No space" not in problem or not ONE_LINE.match(problem):
            problems.append(f"{room} pages: {problem or 'nothing was said'}")
        if names != before or checkpoint.find_latest_checkpoint(source, warn=problems.append).name != "step-00000600":
            problems.append(f"{room} pages left {names}")
    shutil.disk_usage = known
    resize(place, ENOUGH)
    return found, problems


def runs(ground: kill.Range, sizes: int) -> tuple[int, int, list[str]]:
    """Run on so many sizes; returns how many stopped, how many of them at a checkpoint, and broken promises."""
    stage, problems, stopped, at_a_save = "pretrain", [], 0, 0
    whole = sum(-(-path.stat().st_size // PAGE) * PAGE for path in ground.whole.rglob("*") if path.is_file())
    said = time.monotonic()
    for number in range(sizes):
        for path in ground.run.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        size = whole * 17 * (number + 1) // (10 * sizes) // PAGE * PAGE
        resize(ground.run, size)
        if kill.end(kill.start(ground.recipe, stage, ground.log)) == 0:
            continue
        stopped += 1
        told, checkpoints = ground.error(), ground.run / stage / "checkpoints"
        at_a_save += "step-" in told
        one_line = told.startswith("fledgling.config.UserError: ") and str(ground.run) in told and " free" in told
        if not one_line:
            problems.append(f"{size} bytes: {told}")
        checkpoint.find_latest_checkpoint(checkpoints, warn=problems.append)
        if checkpoints.exists() and any(path.name.startswith(".tmp-") for path in checkpoints.iterdir()):
            problems.append(f"{size} bytes: half a save is left")
        resize(ground.run, ENOUGH)
        if kill.end(kill.start(ground.recipe, stage, ground.log)):
            problems.append(f"{size} bytes, then enough: {ground.error()}")
        problems += [f"{size} bytes: {one}" for one in kill.differences(ground.whole, ground.run, stage)]
        if time.monotonic() - said > 2:
            said = time.monotonic()
            print(f"run {number + 1}/{sizes}, {len(problems)} broken promises", file=sys.stderr)
    return stopped, at_a_save, problems


def inside(folder: Path, sizes: int) -> int:
    """All of it, in a namespace where a file system may be mounted."""
    small = folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ENOUGH}", "tmpfs", str(small)], check=True)
    found, problems = saves(small)
    for name, count in found.items():
        print(f"{name:22} {count:3} pages without room")
    print(f"saves: {found.total()} sizes, {len(problems)} broken promises")
    if sizes:
        ground = kill.Range(folder, ("pretrain",))
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ENOUGH}", "tmpfs", str(ground.run)], check=True)
        stopped, at_a_save, more = runs(ground, sizes)
        print(f"runs: {sizes} sizes, {stopped} stopped ({at_a_save} at a checkpoint), {len(more)} broken promises")
        problems += more
    print("\n".join(problems), end="\n" if problems else "")
    return 1 if problems else 0


def possible() -> bool:
    """Whether this kernel lends a namespace in which to mount."""
    command = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs tmpfs /tmp"]
    return bool(shutil.which("unshare")) and subprocess.run(command, capture_output=True).returncode == 0


def main() -> int:
    """Start again inside a namespace of its own, on a folder that is deleted afterwards."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=40, help="sizes under which the stage is run; 0: only saves")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        return inside(asked.inside, asked.runs)
    if not possible():
        print("no namespaces to mount a file system in: nothing was tried", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        again = [sys.executable, "-m", "tests.campaigns.full_disk", "--runs", str(asked.runs), "--inside", folder]
        return subprocess.run(["unshare", "-rm", *again]).returncode


if __name__ == "__main__":
    sys.exit(main())
