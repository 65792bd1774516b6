"""The figures of a run, computed again from its record: the report's page, sums over steps, settings."""

from __future__ import annotations

import html
import json
import math
import re
import tomllib
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from fledgling.config import STAGES, UserError, dump_toml
from fledgling.config.load import parse_recipe
from fledgling.record.checkpoint import read_checkpoint_state
from fledgling.record.jsonl import read_jsonl
from fledgling.report.page_digest import is_as_written
from fledgling.report.run_data import finite_number, load_run_data, read_object
from fledgling.report.run_page import render_report
from fledgling.verify.check import Check
from fledgling.verify.files import list_deleted, list_stage_checkpoints, list_stages, read_recipe_table
from fledgling.verify.stage_order import find_last_trained, list_outdated

_MARKUP = re.compile(r"<(style|script)\b.*?</\1>|<[^>]*>", re.DOTALL)
_WHEN_MADE = re.compile(r"\bMade \d{4}-\d\d-\d\d \d\d:\d\d UTC\b")
_LINES_READ = re.compile(r'<footer data-lines="([^"]*)"')
_UNIX_TIME = re.compile(r'(<footer data-lines="[^"]*") data-made="([\d.]*)" data-digest="[0-9a-f]*"')
_FIGURE = re.compile(r"\d[\d,.]*")
RUN_SETTINGS = ("init_from", "dtype", "fp8", "max_rollbacks")  # that change what is learned
LAST_TABLES = ("optimizer", "adapter", "distill")  # may change from stage to stage
MAX_NAMED = 5  # differences of the report that are named


def check_report(run_dir: Path, same_version: bool) -> Check:
    """Compares RUN/report.html with the page that its record gives now, without the lines that were added since.

    A page that was made before the newest step, or the newest end of a stage, is not compared: the run was resumed, or
    a stage was restarted, with as many steps or fewer. Nor is one with steps of a stage that has been deleted, or
    that was stopped and has lost the steps after its last checkpoint.

    same_version: whether this version of the package wrote it; another one may lay it out differently.
    """
    check, path = Check("figures of the report", "figures"), run_dir / "report.html"
    if not path.is_file():
        check.notes.append("no report.html: write it with `fledgling report`")
        return check
    if not same_version:
        check.notes.append("report.html was written by another version, which may lay it out differently")
        return check
    page = path.read_bytes().decode("utf-8", "replace")  # as it is: a carriage return of a text is one
    _compare_page(run_dir, page, check)
    if not check.problems and not is_as_written(page):
        check.problems.append("report.html was edited since it was written: it is not what its own digest says")
    return check


def _compare_page(run_dir: Path, page: str, check: Check) -> None:
    """Adds what differs between a page and the record, or why they are not compared."""
    if deleted := list_deleted(run_dir):
        check.notes.append(
            f"report.html is not compared: {', '.join(deleted)} were deleted, and it has figures of them"
        )
        return
    lines_read, present = read_lines_read(page), load_run_data(run_dir)
    run = load_run_data(run_dir, lines_read)
    if lines_read is not None:
        here, done = present.lines_read, {stage.name for stage in present.stages if stage.done}
        steps = {name: here.get(f"{name}/metrics", 0) - lines_read.get(f"{name}/metrics", 0) for name in STAGES}
        undone = [name for name, count in steps.items() if count < 0 and name not in done]
        if undone or max(steps.values()) > 0 or read_unix_time(page) < present.last_time:
            why = f"it has steps of {', '.join(undone)} that are not here" if undone else "it was resumed since"
            check.notes.append(f"report.html is older than the run: {why}; `fledgling report` makes it again")
            return
        added = {name: count - lines_read.get(name, 0) for name, count in here.items()}
        check.problems += [
            f"report.html was made from {lines_read[name]} lines of {name}.jsonl, which has {here.get(name, 0)}"
            for name in sorted(lines_read)
            if lines_read[name] > here.get(name, 0)
        ]
        if new := sum(count for count in added.values() if count > 0):
            check.notes.append(f"report.html is older than {new} lines of the record: `fledgling report` adds them")
    stored, expected = (_UNIX_TIME.sub(r"\1", _WHEN_MADE.sub("Made", text)) for text in (page, render_report(run)))
    texts = [_MARKUP.sub(" ", page).split() for page in (stored, expected)]
    check.total = check.checked = sum(bool(_FIGURE.search(word)) for word in texts[1])
    differences = [
        f'report.html has "{" ".join(texts[0][a:b])[:80]}" after "{" ".join(texts[0][max(0, a - 4) : a])[:60]}", '
        f'the record gives "{" ".join(texts[1][c:d])[:80]}"'
        for a, b, c, d in find_differences(texts[0], texts[1])
    ]
    check.problems += differences[:MAX_NAMED]
    if len(differences) > MAX_NAMED:
        check.problems.append(f"and {len(differences) - MAX_NAMED} more differences of report.html")
    if stored != expected and not differences:
        check.problems.append("a chart of report.html is not that of the record")


def find_differences(before: list[str], after: list[str]) -> list[tuple[int, int, int, int]]:
    """Returns the parts a:b of `before` that parts c:d of `after` take the place of, as (a, b, c, d) in their order."""
    start, ends = 0, (len(before), len(after))  # what both begin and end with needs no search for the longest match
    while start < min(ends) and before[start] == after[start]:
        start += 1
    while min(ends) > start and before[ends[0] - 1] == after[ends[1] - 1]:
        ends = (ends[0] - 1, ends[1] - 1)
    middle = SequenceMatcher(None, before[start : ends[0]], after[start : ends[1]], autojunk=False)
    return [
        (start + a, start + b, start + c, start + d) for kind, a, b, c, d in middle.get_opcodes() if kind != "equal"
    ]


def read_unix_time(page: str) -> float:
    """Returns when a page was made in seconds; infinity where it does not say it, so that it is compared."""
    try:
        return float(_UNIX_TIME.search(page)[2])  # type: ignore[index]
    except (TypeError, ValueError):
        return math.inf


def read_lines_read(page: str) -> dict[str, int] | None:
    """Returns `RunData.lines_read` of the run that a page was made from; None where the page does not say it."""
    found = _LINES_READ.search(page)
    try:
        values = json.loads(html.unescape(found[1])) if found else None
    except ValueError:
        return None
    right = isinstance(values, dict) and all(type(count) is int and count >= 0 for count in values.values())
    return values if right else None


def check_sums(run_dir: Path) -> Check:
    """Checks that steps count up by one, that running sums are the sums, and that done.json has the last of them."""
    check = Check("sums of the record", "lines")
    for stage in list_stages(run_dir):
        lines = read_jsonl(run_dir / stage / "metrics.jsonl")
        done, seconds, before = read_object(run_dir / stage / "done.json"), 0.0, 0
        for number, line in enumerate(lines, start=1):
            place = f"{stage}/metrics.jsonl line {number}"
            check.checked += 1
            if line.get("step") != number:
                check.problems.append(f"{place}: step {line.get('step')}, expected {number}")
                break
            tokens = line.get("tokens")
            if type(tokens) is not int or tokens < before:
                check.problems.append(f"{place}: tokens {tokens} after {before}")
                break
            before = tokens
            if "training_seconds" in line:
                spent, total = finite_number(line.get("seconds") or 0.0), finite_number(line["training_seconds"])
                if spent is None or total is None:
                    check.problems.append(f"{place}: seconds or training_seconds is no number")
                    break
                seconds += spent
                if abs(total - seconds) > 1e-6 * max(1.0, seconds):
                    check.problems.append(f"{place}: training_seconds {total}, the sum is {seconds}")
                    seconds = total
        last = lines[-1] if lines else {}
        for name in ("step", "tokens", "training_seconds") if done else ():
            if name in last and done.get(name) != last[name]:
                check.problems.append(f"{stage}/done.json: {name} is {done.get(name)}, the record says {last[name]}")
    check.total = check.checked
    return check


def check_settings(run_dir: Path) -> Check:
    """Compares recipe.toml with the recipe that the newest checkpoint of each stage was saved with.

    The optimizer, adapter, teacher and [run] may change from stage to stage: of these the settings of the stage that
    was trained last are compared. Of a stage that an earlier one was trained after, differences are noted: recipe.toml
    is that of the earlier one.
    """
    check, stages = Check("settings", "settings"), list_stages(run_dir)
    outdated, newest = list_outdated(run_dir), find_last_trained(run_dir, stages)
    recipe = read_recipe_table(run_dir)
    recipe = fill_defaults((run_dir / "recipe.toml").read_text("utf-8")) if recipe else {}
    for stage in stages:
        for path in list_stage_checkpoints(run_dir, stage)[-1:]:
            try:
                saved = fill_defaults(read_checkpoint_state(path)["recipe"])
            except (UserError, KeyError, TypeError, tomllib.TOMLDecodeError):
                check.notes.append(f"{path.relative_to(run_dir)} has no recipe")
                continue
            names = ["model", "tokenizer", stage, *(LAST_TABLES if stage == newest else ())]
            tables = [(name, _table(saved, name), _table(recipe, name)) for name in names]
            pairs = [("seed", saved.get("seed"), recipe.get("seed"))]
            pairs += [(f"{t}.{key}", a.get(key), b.get(key)) for t, a, b in tables for key in sorted({*a, *b})]
            if stage == newest:
                before, now = _table(saved, "run"), _table(recipe, "run")
                pairs += [(f"run.{key}", before.get(key), now.get(key)) for key in RUN_SETTINGS]
            different = [pair for pair in pairs if pair[1] != pair[2]]
            if stage in outdated and different:
                changed = ", ".join(name for name, *_ in different[:MAX_NAMED])
                more = f" and {len(different) - MAX_NAMED} more" if len(different) > MAX_NAMED else ""
                why = f"{outdated[stage]} was trained after it"
                check.notes.append(f"{stage} had other settings than recipe.toml, since {why}: {changed}{more}")
                continue
            check.checked += len(pairs)
            check.problems += [
                f"recipe.toml: {name} is {now}, {path.relative_to(run_dir)} was trained with {then}"
                for name, then, now in different
            ]
    check.total = check.checked
    return check


def fill_defaults(text: str) -> dict[str, Any]:
    """Returns the tables of a recipe's text with today's defaults of keys that it lacks, as they are in a damaged one.

    So a key that came with a later version is no difference between a checkpoint and recipe.toml.
    """
    try:
        return tomllib.loads(dump_toml(parse_recipe(text)))
    except UserError:
        return tomllib.loads(text)


def _table(recipe: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns a table of a recipe as key -> value; anything else under its name as {"": value}."""
    value = recipe.get(name, {})
    return value if isinstance(value, dict) else {"": value}
