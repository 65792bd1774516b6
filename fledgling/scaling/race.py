"""Races: recipes, checkouts and other programs' results on one text, at equal time of training steps.

    OUT/race.toml            what all runs share: the time, the text
    OUT/text/                train.jsonl and held_out.jsonl, one {"text": ...} a line: also for another program
    OUT/base-s0/             an ordinary run directory; points.jsonl: what it reached by when; race.json once finished
    OUT/race.html            table and curves

Seeds are the outermost loop, and each seed begins with another contestant, so that a machine that slows down slows all.
A finished run is skipped, an interrupted one is resumed. Start with `run_race`; `race_results.py` compares.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import fledgling
from fledgling.config import StageConfig, UserError, load_recipe
from fledgling.corpora.document import Document, split_held_out
from fledgling.corpora.prepare import DocumentPreparer, read_source
from fledgling.corpora.prepared_data import digest_code
from fledgling.record import write_json, write_text
from fledgling.record.jsonl import format_bytes
from fledgling.record.run_lock import hold_lock
from fledgling.runtime.exit_codes import STOPPED
from fledgling.scaling import race_run
from fledgling.scaling.ablation import VARIANTS, require_change
from fledgling.scaling.race_results import RaceRun, drop_copies, explain_late, read_points, read_race_run, read_results
from fledgling.scaling.settings import describe_differences, dump_settings, find_changed_settings, pin_settings
from fledgling.train.data_preparer import split_mixture
from fledgling.train.loop import TrainingStopped

SETTINGS = "race.toml"
CONTESTANT = "contestant.json"  # of a run: its checkout, its recipe, a digest of its code
TEXT_STAMP = "sources.json"  # of the text: what it was made from
MAX_TEXT_BYTES = 250_000_000  # of the text, which is split in memory
HELD_OUT_BYTES = 600_000  # that every measurement reads, if nothing else is asked for
BASE = "quickstart"  # the recipe of contestants that name none
FORMS = "NAME, RECIPE, TREE:RECIPE or FILE.jsonl, each with +table.key=value as often as needed, and NAME= before it"

Log = Callable[[str], None]


@dataclass(frozen=True)
class RaceSettings:
    """What all runs of a race share; OUT/race.toml keeps it.

    Attributes:
        minutes: of training steps of each run.
        text: a source of documents; None: those of the first recipe's pretraining mixture.
        points: measurements of a run.
        held_out_bytes: of the documents that a measurement reads, about.
        clock: of `race_run.Job`.
    """

    minutes: float
    text: str | None = None
    points: int = 8
    held_out_bytes: int = HELD_OUT_BYTES
    clock: str = "wall"

    @property
    def seconds(self) -> float:
        """Returns the seconds of training steps of each run."""
        return 60 * self.minutes


@dataclass(frozen=True)
class Contestant:
    """What takes part: a recipe with overrides, of this package or of the checkout `tree`; or a file of results."""

    name: str
    recipe: str = ""
    overrides: tuple[str, ...] = ()
    tree: Path | None = None
    results: Path | None = None


def parse_contestant(text: str, base: str, overrides: Sequence[str] = ()) -> Contestant:
    """Returns the contestant that a word of the command line describes.

    Args:
        text: [NAME=]WHAT[+table.key=value...]; WHAT is a recipe's name or file, the name of a feature of
            `ablation.VARIANTS` (the base recipe with its overrides), nothing (the base recipe), TREE:RECIPE with the
            directory of a checkout, or a .jsonl file of another program's results.
        base: the base recipe.
        overrides: of all recipes.

    Raises:
        UserError: for anything else, and for a feature that the base recipe has already; of another checkout's recipes
            nothing is known.
    """
    match = re.fullmatch(r"(?:(?P<name>[\w-]+)=)?(?P<what>[^+=]*)(?P<more>(?:\+.*)?)", text)
    if not match:
        raise UserError(f'contestant "{text}": expected {FORMS}')
    what, more = match["what"], tuple(filter(None, match["more"].split("+")))
    name = match["name"] or re.sub(r"[^\w.=-]+", "-", text).strip("-")
    if what.endswith((".jsonl", ".jsonl.gz")):
        if more:
            raise UserError(f'contestant "{text}": a file of results takes no overrides')
        read_points(Path(what))
        return Contestant(name, results=Path(what))
    tree, separator, recipe = what.rpartition(":")
    if separator and not (Path(tree) / "fledgling" / "__init__.py").is_file():
        raise UserError(f'contestant "{text}": {tree} holds no fledgling/__init__.py; expected the root of a checkout')
    variant = VARIANTS.get(recipe, ())
    chosen = base if variant or not recipe else recipe
    contestant = Contestant(
        name, chosen, (*overrides, *variant, *more), tree=Path(tree).resolve() if separator else None
    )
    if not contestant.tree:  # another checkout may know other keys
        loaded = load_recipe(chosen, contestant.overrides)
        if variant:
            require_change(f'contestant "{text}"', loaded, load_recipe(chosen, overrides))
    return contestant


def parse_contestants(words: Sequence[str], base: str, overrides: Sequence[str] = ()) -> list[Contestant]:
    """Returns the contestants of a race, the first the one that others are compared with.

    Raises UserError for fewer than two, and for two of one name.
    """
    contestants = [parse_contestant(word, base, overrides) for word in words]
    names = [contestant.name for contestant in contestants]
    if len(names) < 2:
        raise UserError(f"a race needs two contestants or more, got {len(names)}; each is {FORMS}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f'two contestants are called "{twice[0]}": put NAME= before one of them')
    if base != BASE and not any(contestant.recipe == base for contestant in contestants):
        raise UserError(f"--recipe {base} has no effect: every contestant has a recipe of its own; leave it out")
    if contestants[0].results:
        raise UserError(f"{contestants[0].results}: the first contestant, which others are compared with, must be run")
    return contestants


def run_race(
    contestants: Sequence[Contestant],
    seeds: int,
    settings: RaceSettings,
    out: Path,
    log: Log,
    on_finished: Callable[[], object] = lambda: None,
) -> int:
    """Runs what is not finished; returns how many runs that was.

    Args:
        contestants: the first is what the others are compared with.
        seeds: runs of each contestant.
        settings: of all runs.
        out: folder of the race.
        log: receives notices.
        on_finished: is called after every run, old or new.

    Raises:
        UserError: for settings other than those of the race in `out`, and for a text without held-out documents.
        TrainingStopped: after a signal, once everything is saved.
    """
    minutes, points, held_out_bytes = settings.minutes, settings.points, settings.held_out_bytes
    if not (0 < minutes < math.inf and min(seeds, points, held_out_bytes) >= 1):
        counts = f"seeds {seeds}, points {points}, held-out bytes {held_out_bytes}"
        raise UserError(f"minutes {minutes:g}, {counts}: expected more than 0 minutes, and at least 1 of the others")
    first, ran = contestants[0], 0
    overrides = () if first.tree else first.overrides
    sources = (settings.text,) if settings.text else list_text_sources(load_recipe(first.recipe, overrides).pretrain)
    out = out.resolve()
    with hold_lock(out, "this race", log, remedy="choose another --out"):
        shared = f'seconds = {settings.seconds:g}\npoints = {points}\nclock = "{settings.clock}"\n'
        shared += f"sources = {json.dumps(sources)}\nheld_out_bytes = {held_out_bytes}\n"
        pin_settings(out / SETTINGS, shared, "a race")
        data_dir = load_recipe(first.recipe, overrides).run.data_dir
        write_race_text(sources, data_dir, out / "text", held_out_bytes, log)
        for seed in range(seeds):
            turn = seed % len(contestants)
            for contestant in [*contestants[turn:], *contestants[:turn]]:
                if contestant.results:
                    continue
                run = f"{contestant.name}-s{seed}"
                given = contestant.recipe, contestant.overrides, seed, settings.seconds
                job = race_run.Job(*given, str(out), run, points, settings.clock)
                check_contestant(job, contestant, log)
                if not is_job_finished(job):
                    log(f"race: {run}, {minutes:g} minutes of steps")
                    run_job(job, contestant.tree, log)
                    ran += 1
                on_finished()
    return ran


def is_job_finished(job: race_run.Job) -> bool:
    """Returns whether a job's run is finished. Raises UserError if that run is of another job."""
    path = job.run_dir / race_run.RESULT
    if not path.is_file():
        return False
    try:
        there = json.loads(path.read_text(encoding="utf-8"))["job"]
    except (ValueError, LookupError, TypeError):  # it was cut: its last words are written again
        return False
    here = json.loads(json.dumps(asdict(job)))
    for name in ("recipe", "overrides", "seed", "seconds", "points", "clock"):
        if there.get(name) != here[name]:
            raise UserError(
                f"{job.run_dir} has {name} {there.get(name)!r}, asked for {here[name]!r}: put another NAME= before the "
                "contestant, or choose another --out"
            )
    return True


def check_contestant(job: race_run.Job, contestant: Contestant, log: Log) -> None:
    """Writes what a run is of to RUN/contestant.json, or compares it with what that says, before any of its steps.

    Raises UserError for a run of another checkout, or of a recipe that was edited since. Other code is logged: a race
    may be resumed after the package has changed.
    """
    package = (contestant.tree or Path(fledgling.__file__).parent.parent) / "fledgling"
    file, recipe, settings = Path(contestant.recipe), None, ""
    if contestant.tree is None:
        recipe = load_recipe(contestant.recipe, contestant.overrides)
        settings = dump_settings(recipe)
    elif file.is_file():  # this package may not know its keys
        settings = file.read_text(encoding="utf-8")
    tree = str(contestant.tree) if contestant.tree else None
    here = {"tree": tree, "settings": settings, "code": digest_code(package)}
    path = job.run_dir / CONTESTANT
    if not path.exists():
        if not (job.run_dir / race_run.POINTS).exists():  # else it was begun by an earlier version
            write_json(path, here)
        return
    there = json.loads(path.read_text(encoding="utf-8"))
    remedy = "put another NAME= before the contestant, or choose another --out"
    if there.get("tree") != tree:
        trained, requested = (name or "this package" for name in (there.get("tree"), tree))
        raise UserError(f"{job.run_dir} was trained by {trained}; this race asks for {requested}: {remedy}")
    settings_there = str(there.get("settings"))
    differing = find_changed_settings(settings_there, settings)
    if differing:
        what = f"another state of the recipe {contestant.recipe} ({describe_differences(differing)})"
        raise UserError(f"{job.run_dir} was trained with {what}: {remedy}")
    if there.get("code") != here["code"]:
        log(f"race: {job.run} began with other code than {package} has now")


def run_job(job: race_run.Job, tree: Path | None, log: Log) -> None:
    """Runs a job in this process, or with the package of a checkout in another one.

    Raises UserError where the other process fails, TrainingStopped where it was stopped.
    """
    if tree is None:
        race_run.run_contestant(job, log)
        return
    file = job.run_dir / "job.json"
    write_json(file, asdict(job))
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, race_run.__file__, str(file)], env=environment, check=False)
    if done.returncode == STOPPED:
        raise TrainingStopped(0)
    if done.returncode or not is_job_finished(job):
        raise UserError(
            f"{job.run}: {tree} ended with exit code {done.returncode}; its message is above, its files are in "
            f"{job.run_dir}"
        )


def load_race(
    out: Path, contestants: Sequence[Contestant], seeds: int, seconds: float
) -> tuple[list[RaceRun], list[str]]:
    """Returns the finished runs of the contestants, in their order, and a line for each that is left out.

    That is a copy of another one, or has no point within `seconds`.
    """
    runs = list[RaceRun]()
    for contestant in contestants:
        if contestant.results:
            runs += read_results(contestant.results, contestant.name)
        else:
            own = (read_race_run(out / f"{contestant.name}-s{seed}", contestant.name, seed) for seed in range(seeds))
            runs += [run for run in own if run]
    runs, copies = drop_copies(runs)
    return runs, [*copies, *explain_late(runs, seconds)]


def list_text_sources(pretrain: StageConfig) -> tuple[str, ...]:
    """Returns the sources of documents of pretraining."""
    return tuple(split_mixture(pretrain.mixture).documents)


def write_race_text(sources: Sequence[str], data_dir: str | None, folder: Path, held_out_bytes: int, log: Log) -> None:
    """Writes the documents to train on and those to measure on, once; logs sources that have changed since.

    Args:
        sources: names, files or folders.
        data_dir: the data root; None: the default one.
        folder: receives the two files.
        held_out_bytes: of the documents to measure on, about.
        log: receives a notice.

    Raises UserError if nothing is held out, or the text is larger than MAX_TEXT_BYTES.
    """
    train, held_out = folder / race_run.TRAIN_TEXT, folder / race_run.HELD_OUT_TEXT
    if train.exists():
        log_changed_sources(sources, data_dir, folder, log)
        return
    documents, size = list[Document](), 0
    for source in sources:
        for document in read_source(source, data_dir):
            documents.append(document)
            size += document.num_bytes
            if size > MAX_TEXT_BYTES:
                raise UserError(
                    f"{source}: more than {format_bytes(MAX_TEXT_BYTES)} of text, which a race splits in memory; "
                    "give some of its files with --text"
                )
    training, validation = split_held_out(documents)
    if not (training and validation):
        raise UserError(f"{', '.join(sources)}: too small to hold out a document to measure on; give a larger --text")
    kept, left = list[Document](), held_out_bytes
    for document in validation:
        if left > 0:
            kept.append(document)
        left -= document.num_bytes
    write_documents(held_out, kept)
    write_json(folder / TEXT_STAMP, digest_sources(sources, data_dir, folder))
    write_documents(train, training)  # last: it says that both are complete
    log(f"race: {format_bytes(sum(d.num_bytes for d in training))} to train on, measured on {len(kept):,} documents")


def digest_sources(sources: Sequence[str], data_dir: str | None, folder: Path) -> dict[str, str]:
    """Returns a digest of the content of each source. Raises UserError for one that is gone."""
    preparer = DocumentPreparer(folder, data_dir, lambda text: None)
    return {source: preparer.digest_source(source) for source in sources}


def log_changed_sources(sources: Sequence[str], data_dir: str | None, folder: Path, log: Log) -> None:
    """Logs the sources that are not what the text of a race was made from."""
    stamp = folder / TEXT_STAMP
    before = json.loads(stamp.read_text(encoding="utf-8")) if stamp.is_file() else {}
    for source in sources:
        try:
            is_same = digest_sources([source], data_dir, folder)[source] == before.get(source)
        except UserError:  # it is gone
            is_same = False
        if source in before and not is_same:
            log(f"race: {source} has changed since this race began, whose runs all read its text of then, {folder}")


def write_documents(path: Path, documents: Sequence[Document]) -> None:
    """Writes documents as lines {"text": ...}."""
    write_text(path, "".join(json.dumps({"text": document.text}, ensure_ascii=False) + "\n" for document in documents))
