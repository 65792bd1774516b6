"""`fledgling bench learn`: which recipe, checkout or other program learns most in the same time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from fledgling.cli.options import Json, Overrides, print_to_stderr
from fledgling.cli.scaling import print_table, report_stop
from fledgling.runtime.exit_codes import STOPPED


def learn(
    *contestants: str,
    minutes: float = 5,
    seeds: int = 3,
    recipe: str = "quickstart",
    text: str | None = None,
    points: int = 8,
    held_out_kb: int = 600,
    clock: Literal["wall", "cpu"] = "wall",
    out: Path = Path("runs/race"),
    overrides: Overrides = (),
    as_json: Json = False,
) -> int:
    """Train recipes for the same time on the same text, and compare bits per byte; run it again to resume.

    Parameters
    ----------
    contestants
        Two or more: an optional feature (docs/features.md), a recipe, CHECKOUT:RECIPE, or a .jsonl file of another
        program's results, each with +table.key=value as often as needed, and NAME= before it. The others are compared
        with the first.
    minutes
        Training steps of each run, without compilation and evaluation.
    seeds
        Runs of each contestant, with different initial weights and order of the text.
    recipe
        The recipe that optional features, and contestants without a recipe, change.
    text
        A source of documents: a file or folder, or embedded. Default: that of the first contestant.
    points
        Measurements of each run, at equal distances in time.
    held_out_kb
        Thousands of bytes of held-out documents that a measurement reads, about.
    clock
        cpu counts processor time over the number of threads, for a machine that others use too.
    out
        Directory of the runs, of the text (for other programs too) and of race.html.
    """
    from fledgling.record.outside import require_no_part_of_run
    from fledgling.scaling import race, race_results
    from fledgling.train.loop import TrainingStopped

    require_no_part_of_run(out)
    chosen = race.parse_contestants(contestants, recipe, overrides)
    settings = race.RaceSettings(minutes, text, points, 1000 * held_out_kb, clock)

    def rank() -> tuple[list[race_results.ContestantResult], list[str]]:
        runs, notes = race.load_race(out, chosen, seeds, 60 * minutes)
        results = race_results.rank_runs(runs, 60 * minutes)
        race_results.build_race_page(out / "race.html", results, 60 * minutes, notes)
        return results, notes

    try:
        race.run_race(chosen, seeds, settings, out, print_to_stderr, rank)
    except TrainingStopped as stopped:
        report_stop(stopped)
        return STOPPED
    (results, notes), page = rank(), out / "race.html"
    for line in notes:
        print_to_stderr(line)
    if as_json:
        values = {"race": race_results.results_to_json(results), "left_out": notes, "page": str(page)}
        print(json.dumps(values, indent=2))
        return 0
    title = f"bits per byte after {minutes:g} minutes of steps"
    print_table(race_results.HEADER, race_results.result_rows(results, 60 * minutes), title, wrap=False)
    print(f"page: {page}")
    return 0
