"""The figures of a run, recomputed from its record: sums over steps, settings; those of its page: `report_page`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from fledgling.config import UserError, dump_toml
from fledgling.config.load import parse_recipe
from fledgling.config.recorded_recipe import explain_lost
from fledgling.record.checkpoint import read_checkpoint_state
from fledgling.record.jsonl import read_jsonl
from fledgling.report.run_data import finite_number, read_object
from fledgling.train.stage_horizon import count_made_steps
from fledgling.verify.check import Check
from fledgling.verify.files import list_stage_checkpoints, list_stages, read_recipe_table
from fledgling.verify.stage_order import find_last_trained, list_outdated

RUN_SETTINGS = ("init_from", "dtype", "fp8", "max_rollbacks")  # that change what is learned
LAST_TABLES = ("optimizer", "adapter", "distill")  # may change from stage to stage
MAX_NAMED = 5  # settings that are named


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


def check_recorded_settings(run_dir: Path) -> Check:
    """Compares recipe.toml with the recipe that the newest checkpoint of each stage was saved with.

    The optimizer, adapter, teacher and [run] may change from stage to stage: of these the settings of the stage that
    was trained last are compared. If an earlier stage was trained after a later one, the later stage's differences are
    noted: recipe.toml is that of the earlier one.
    """
    check, stages = Check("settings", "settings"), list_stages(run_dir)
    outdated, newest = list_outdated(run_dir), find_last_trained(run_dir, stages)
    recipe = read_recipe_table(run_dir)
    if not recipe:
        check.problems.append("recipe.toml cannot be read or has no settings: each checkpoint has those of its stage")
        return check
    if reason := explain_lost(recipe, run_dir):
        check.problems.append(f"recipe.toml {reason}")
        return check
    recipe = fill_defaults((run_dir / "recipe.toml").read_text("utf-8"))
    for stage in stages:
        for path in list_stage_checkpoints(run_dir, stage)[-1:]:
            try:
                state = read_checkpoint_state(path)
                saved = fill_defaults(state["recipe"])
            except (UserError, KeyError, TypeError, tomllib.TOMLDecodeError):
                check.notes.append(f"{path.relative_to(run_dir)} has no recipe")
                continue
            names = ["model", "tokenizer", stage, *(LAST_TABLES if stage == newest else ())]
            tables = [(name, _flatten_table(saved, name), _flatten_table(recipe, name)) for name in names]
            for _, *pair in (entry for entry in tables if entry[0] == stage):  # a budget may have changed them
                for table in pair:
                    table["steps"] = count_made_steps(state, table.get("steps"))
            pairs = [("seed", saved.get("seed"), recipe.get("seed"))]
            pairs += [(f"{t}.{key}", a.get(key), b.get(key)) for t, a, b in tables for key in sorted({*a, *b})]
            if stage == newest:
                before, now = _flatten_table(saved, "run"), _flatten_table(recipe, "run")
                pairs += [(f"run.{key}", before.get(key), now.get(key)) for key in RUN_SETTINGS]
            different = [pair for pair in pairs if pair[1] != pair[2]]
            if stage in outdated and different:
                changed = ", ".join(name for name, *_ in different[:MAX_NAMED])
                more = f" and {len(different) - MAX_NAMED} more" if len(different) > MAX_NAMED else ""
                why = f"{outdated[stage]} was trained after it"
                check.notes.append(f"{stage} had other settings than recipe.toml, since {why}: {changed}{more}")
                continue
            check.checked += len(pairs)
            place = path.relative_to(run_dir)
            check.problems += [
                f"recipe.toml: {name} is {now}, {place} was trained with {then}"
                for name, then, now in different[:MAX_NAMED]
            ]
            if len(different) > MAX_NAMED:
                check.problems.append(f"recipe.toml: {len(different) - MAX_NAMED} more settings differ from {place}")
    check.total = check.checked
    return check


def fill_defaults(text: str) -> dict[str, Any]:
    """Returns the tables of a recipe's text with today's defaults of keys that it lacks, as they are in a corrupt one.

    So a key that came with a later version is no difference between a checkpoint and recipe.toml.
    """
    try:
        return tomllib.loads(dump_toml(parse_recipe(text)))
    except UserError:
        return tomllib.loads(text)


def _flatten_table(recipe: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns a table of a recipe as key -> value; anything else under its name as {"": value}."""
    value = recipe.get(name, {})
    return value if isinstance(value, dict) else {"": value}
