"""A run within an amount of time or money: it measures this machine, chooses its size, and keeps to its time.

    measure the speed of training -> choose depth, stages, steps, batch -> RUN/forecast.json -> stages -> compare

On a CPU compiling takes most of a measurement, 15 to 25 s, so four steps without it say first which depth to measure.

RUN/forecast.json has the budget, the recipe, the time of every stage and the forecast; it is written once and sealed.
RUN/spent.json has the seconds spent up to the stage that runs. A resumed run uses both: the seconds of
work count, a pause between two sessions does not. Before a stage its steps follow from the time that is left;
`fledgling.train.pace` changes its length while it runs. Start with `run_budgeted`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fledgling.config import STAGES, Recipe, RunConfig, UserError
from fledgling.plan.amount import MOST, UNITS, Budget
from fledgling.plan.budget import TrainingSpeed, fit_phases
from fledgling.plan.budgeted_run import BudgetedRun, dump_without_place, read_budgeted_run
from fledgling.plan.core_speed import measure_core_share
from fledgling.plan.cost import EAGER_SHARE
from fledgling.plan.hardware import DeviceSpec, make_own_device
from fledgling.plan.past_runs import (
    PastRun,
    append_past_run,
    describe_data,
    identify_first_step,
    list_mixture_sources,
    user_file,
)
from fledgling.plan.stage_seconds import EVALUATIONS, StageSeconds
from fledgling.record import read_jsonl, write_json
from fledgling.record.parent import read_newest_state
from fledgling.record.run_lock import RunLock
from fledgling.record.seal import FORECAST, SPENT, has_run_ended, seal_run
from fledgling.record.user_cache import describe_unwritable
from fledgling.report.forecasts import measure_run
from fledgling.report.run_data import RunData, finite_number, load_run_data, read_object
from fledgling.runtime.cores import count_cores
from fledgling.runtime.device import choose_setup, set_up_device
from fledgling.runtime.system_environment import collect_environment
from fledgling.runtime.world import World, is_main_process
from fledgling.speedrun.choose import choose_budgeted_run
from fledgling.speedrun.continued import change_settings, continue_run, read_adjusted_recipe
from fledgling.speedrun.stages import list_stages_left, run_stages
from fledgling.speedrun.text_digests import digest_texts
from fledgling.train.check_outside import require_run_settings
from fledgling.train.check_recipe import check_recipe, require_sound
from fledgling.train.data_preparer import DataPreparer
from fledgling.train.hooks import StageHooks
from fledgling.train.init_from import take_given_model
from fledgling.train.pace import RunClock, StagePace, compute_affordable_fraction, count_tail_steps
from fledgling.train.peak import find_spec, name_device
from fledgling.train.run import run_stage
from fledgling.train.run_directory import print_line, print_nothing
from fledgling.train.same_ranks import require_same_recipe
from fledgling.train.stage import Eval
from fledgling.train.stage_settings import require_valid_settings
from fledgling.train.training_speed import SECONDS, measure_training_speed

LEAST_SHARE = 0.7  # of the FLOP/s that steps without compiling let expect, below which a depth is measured again
MEASURED_SHARE = 0.01  # of the budget, for the timed steps of a measurement; compiling is needed anyhow
ESTIMATE_STEPS = 2  # that are timed without compiling
MAX_GROWTH = 1.5  # of a later stage's steps, where time is left over
MOST_SECONDS = MOST * UNITS["--hours"]  # that a run can have spent
ROUNDING = 0.1  # seconds, of recorded times that are compared with each other
MIN_CHANGE = 0.02  # of a stage's steps: smaller changes are not made before it


# ---- choosing -------------------------------------------------------------------------------------


def require_gpu(run: RunConfig, device: DeviceSpec) -> None:
    """Raises UserError unless this machine has the GPU that is paid for."""
    world = World.start(run.device)
    here = name_device(choose_setup(run, world), world.device)
    if here != device.name:
        raise UserError(
            f"--gpu {device.name}: this machine has {here or world.device.type}; `fledgling plan --usd` plans for "
            "a GPU that is not here, and --minutes trains on this machine"
        )


def measure_and_choose(recipe: Recipe, budget: Budget, clock: RunClock, is_pinned: bool) -> BudgetedRun:
    """Measures this machine and returns the run that the budget becomes on it. Every rank calls it."""
    given, recipe = recipe, take_given_model(recipe)
    is_pinned = is_pinned or recipe is not given
    world = World.start(recipe.run.device)
    require_same_recipe(recipe, world, budget.text)
    setup = set_up_device(recipe.run, world)
    setup = replace(setup, memory_limit=min(world.all_gather_object(setup.memory_limit)))
    device = make_own_device(find_spec(setup, world.device), memory_gib=setup.memory_limit / 2**30)
    device = replace(device, peaks=dict(device.peaks) | {setup.dtype_name: setup.peak_flops})
    real = replace(recipe, run=replace(recipe.run, compile="on" if setup.compiled else "off", ranks=world.size))
    seconds = min(SECONDS, MEASURED_SHARE * budget.seconds)

    def measure(sized: Recipe, expected: float) -> TrainingSpeed:
        before = measure_core_share()
        speed = measure_training_speed(sized, world, setup, seconds)
        if speed.flops < LEAST_SHARE * expected:  # other processes computed, or it is so
            speed = max(speed, measure_training_speed(sized, world, setup, seconds), key=lambda each: each.flops)
        share = min(before, measure_core_share())  # another process that ran for a moment does not count
        return replace(speed, core_share=share, cores=count_cores())

    def choose(speeds: list[TrainingSpeed]) -> BudgetedRun:
        found: list[BudgetedRun | UserError] = []
        if world.is_main:
            try:
                found = [choose_budgeted_run(real, budget, device, world.size, speeds, clock.spent, is_pinned)]
            except UserError as error:
                found = [error]
        chosen = world.all_gather_object(found)[0][0]
        if isinstance(chosen, UserError):
            raise chosen
        return chosen

    likely, estimated = recipe, list[TrainingSpeed]()
    if setup.compiled and world.device.type == "cpu" and not is_pinned:
        try:
            eager = measure_training_speed(recipe, world, replace(setup, compiled=False), 0.0, ESTIMATE_STEPS)
            estimated = [replace(eager, flops=eager.flops / EAGER_SHARE)]
            likely = replace(recipe, model=choose(estimated).recipe.model)
        except UserError:  # the measured speed has the last word
            estimated = []
    expected = estimated[0].flops if estimated else 0.0
    speeds = [measure(likely, expected)]
    if likely.model.depth == recipe.model.depth:
        estimated = []
    others = [replace(speed, core_share=speeds[0].core_share, cores=speeds[0].cores) for speed in estimated]
    run = choose([*speeds, *others])  # which say how the speed changes with the depth
    if run.recipe.model.depth != likely.model.depth:
        speeds.append(measure(replace(recipe, model=run.recipe.model), expected))
        run = choose(speeds)
    place = {key: getattr(recipe.run, key) for key in ("compile", "ranks", "out")}
    return replace(
        run, given=dump_without_place(given), recipe=replace(run.recipe, run=replace(run.recipe.run, **place))
    )


# ---- running --------------------------------------------------------------------------------------


def run_budgeted(
    recipe: Recipe,
    budget: Budget | None,
    is_pinned: bool = False,
    started: float | None = None,
    show: Callable[[BudgetedRun, bool], None] = lambda run, is_resumed: None,
    quiet: bool = False,
    now: Callable[[], float] = time.monotonic,
) -> list[str]:
    """Runs a recipe within a budget, or resumes such a run; returns the stages that were run. Every rank calls it.

    Args:
        recipe: as the user gave it, or of the run directory.
        budget: None: that of the run.
        is_pinned: whether the depth is the user's.
        started: when the command was started, by `now`.
        show: receives the run before its first step, and whether it is resumed.

    Raises UserError for a run that began with other settings, or without a budget.
    """
    run_dir = Path(recipe.run.out)
    known = read_budgeted_run(run_dir)
    if known is None and not list_stages_left(recipe):
        return []
    log = print_line if is_main_process() else print_nothing
    known, changed = continue_run(known, recipe, budget, run_dir, log, is_pinned)
    seconds = budget.seconds if budget else known.budget.seconds if known else 0.0
    clock = RunClock(seconds, read_spent(run_dir, log), now, started)
    if not known:
        require_start(recipe)
    run = known or measure_and_choose(recipe, budget or Budget(seconds, ""), clock, is_pinned)
    world = World.start(run.recipe.run.device)
    if not known:
        require_sound_run(run.recipe, world)
    if world.is_main:
        if not known or changed:
            write_json(run_dir / FORECAST, run.to_json())
        if changed:
            seal_run(run_dir)
        show(run, known is not None)
    keeper = _BudgetedStageRunner(run, clock, world, quiet, changed)
    current = keeper.recipe_of_run()
    made = run_stages(current, quiet=quiet, run=keeper.run, is_checked=known is None)
    if world.is_main and not has_run_ended(run_dir) and not list_stages_left(current):
        record_finished_run(run, clock, run_dir, log)
    return made


def require_start(recipe: Recipe) -> None:
    """Raises UserError for settings that no size of the model makes valid, before this machine is measured."""
    for stage in recipe.stages:
        require_valid_settings(recipe, stage)
    world = World.start(recipe.run.device)
    for error in require_run_settings(recipe, DataPreparer(recipe, Path(recipe.run.out)), world):
        raise error


def require_sound_run(recipe: Recipe, world: World) -> None:
    """Raises UserError for what is wrong with any stage, before a new run writes anything. Every rank calls it."""
    with world.main_process_first():
        if world.is_main:
            require_sound(check_recipe(recipe, recipe.stages, choose_setup(recipe.run, world), world))


def read_spent(run_dir: Path, log: Callable[[str], None] = lambda text: None) -> float:
    """Returns the seconds of work of earlier sessions: before the stage that was running, and those it recorded.

    They are what the stages recorded of their steps where spent.json is corrupt or gone, which is logged.
    """
    spent, path = read_object(run_dir / SPENT), run_dir / SPENT
    done = {stage: read_object(run_dir / stage / "done.json") for stage in STAGES}
    times = {stage: _read_stage_seconds(values) for stage, values in done.items()}
    recorded, stage = sum(times.values()), spent.get("stage")
    given = finite_number(spent.get("seconds"))
    is_finished = spent.get("finished") is True
    if is_finished:  # a stage may have been trained again since, with other evaluations
        least = sum(finite_number(values.get("training_seconds")) or 0.0 for values in done.values())
    else:  # it is written before that stage
        least = recorded - (times.get(stage, 0.0) if isinstance(stage, str) else 0.0)
    begun = [name for name in STAGES if not done[name] and (run_dir / name / "metrics.jsonl").exists()]
    if given is None or not least - ROUNDING <= given <= MOST_SECONDS:
        if not (recorded or begun or path.exists()):
            return 0.0
        seconds = recorded + sum(_read_elapsed(run_dir, name) for name in begun)
        found = f"has {given:g}" if given is not None else "does not say them" if path.exists() else "is gone"
        log(f"seconds spent: {path} {found}; counted as {seconds:,.1f}, which its stages recorded")
        return seconds
    if stage not in STAGES or is_finished:
        return given if is_finished else max(recorded, given)
    if done[stage]:  # the run was killed before the next one began
        return max(recorded, given + times[stage])
    return max(recorded, given) + _read_elapsed(run_dir, stage)


def _read_stage_seconds(done: Mapping[str, Any]) -> float:
    """Returns the seconds of a stage that is done: of its work, or in older records of its steps alone."""
    found = (finite_number(done.get(key)) for key in ("seconds", "training_seconds"))
    return max([0.0, *(seconds for seconds in found if seconds is not None)])


def _read_elapsed(run_dir: Path, stage: str) -> float:
    """Returns the seconds of a stage up to its newest checkpoint, from which it is resumed."""
    step = read_newest_state(run_dir, stage).get("step", 0)
    lines = [line for line in read_jsonl(run_dir / stage / "metrics.jsonl") if line.get("step") == step]
    return max(0.0, finite_number(lines[-1].get("elapsed")) or 0.0) if lines else 0.0


class _BudgetedStageRunner:
    """Runs the stages of a run with a budget: the steps of each follow from the time that is left for it."""

    def __init__(
        self, run: BudgetedRun, clock: RunClock, world: World, quiet: bool, changed: Mapping[str, Any]
    ) -> None:
        """Runs nothing yet. changed: settings of stages that have not begun, which the run's recipe.toml lacks."""
        self.changed = changed
        self.planned, self.clock, self.world, self.quiet = run, clock, world, quiet
        self.run_dir = Path(run.recipe.run.out)
        self.recipe, self.slowdown, self.threads = run.recipe, 1.0, 0

    def recipe_of_run(self) -> Recipe:
        """Returns the recipe of the run, with the steps that stages which have begun were given."""
        adjusted = replace(read_adjusted_recipe(self.planned, self.run_dir), run=self.planned.recipe.run)
        self.recipe = change_settings(adjusted, self.changed)
        return self.recipe

    def run(self, name: str, lock: RunLock | None) -> bool:
        """Runs a stage; returns False if it was done."""
        ahead = self.planned.stages_from(name)
        stage, later = ahead[0], ahead[1:]
        is_done = (self.run_dir / name / "done.json").exists()
        has_begun = (self.run_dir / name / "metrics.jsonl").exists()
        if not is_done and not has_begun:
            self.recipe = self.set_steps(name, ahead)
            if self.world.is_main and not has_run_ended(self.run_dir):
                write_json(self.run_dir / SPENT, {"seconds": round(self.clock.spent, 3), "stage": name})
        steps = self.recipe.stage_config(name).steps or stage.steps
        decay = self.recipe.stage_config(name).decay_fraction
        share = steps / stage.steps  # the later ones make the same of theirs, as far as is known now
        later = tuple(replace(each, steps=share * each.steps) for each in later)
        pace = StagePace(self.clock, replace(stage, steps=float(steps)), later, self.slowdown, decay)
        is_last = name == self.recipe.stages[-1]
        hooks = StageHooks(
            select_evals=lambda evals: self.select_evals(evals, name, is_last),
            choose_steps=pace,
            first_threads=self.threads,
            is_followed=not is_last,
        )
        made = run_stage(self.recipe, name, quiet=self.quiet, hooks=hooks, lock=lock)
        if made:
            self.threads = torch.get_num_threads()
        if made and pace.seconds:
            self.slowdown = pace.usual_slowdown
        return made

    def set_steps(self, name: str, ahead: tuple[StageSeconds, ...]) -> Recipe:
        """Returns the recipe with the steps of stage `name` that fit into the time left; the same on all ranks."""
        table = self.recipe.stage_config(name)
        share = compute_affordable_fraction(self.clock.left, ahead, self.slowdown) if self.world.is_main else 0.0
        share = min(MAX_GROWTH, float(self.world.all_gather_object(share)[0]))
        least = count_tail_steps(1.0, table.decay_fraction, ahead[0].steps)
        steps = max(least, int(ahead[0].steps * share))
        if table.steps is None or abs(share - 1) <= MIN_CHANGE or steps == table.steps:
            return self.recipe
        fitted = fit_phases(table, steps, steps / table.steps)
        changed: dict[str, Any] = {name: replace(table, steps=steps, **fitted)}
        return replace(self.recipe, **changed)

    def select_evals(self, evals: tuple[Eval, ...], name: str, is_last: bool) -> tuple[Eval, ...]:
        """Returns the evaluations that the budget has time for."""
        plan = EVALUATIONS[self.planned.evaluations]
        kept = tuple(entry for entry in evals if plan.keeps(name, entry.name, is_last))
        if plan.between:
            return kept
        return tuple(replace(entry, measure=measure_only_at_end(entry)) for entry in kept)


def measure_only_at_end(entry: Eval) -> Callable[[int, bool], list]:
    """Returns the measurement of an evaluation that is made at the end of its stage, and not before its first step."""
    return lambda step, last: entry.measure(step, last) if last or step else []


def record_finished_run(
    run: BudgetedRun, clock: RunClock, run_dir: Path, log: Callable[[str], None] = print_line
) -> PastRun:
    """Records the time of a finished run, and appends it to the user's past runs; returns it.

    log: receives a line where it could not be appended, which stops no run.
    """
    write_json(run_dir / SPENT, {"seconds": round(clock.spent, 3), "finished": True, "time": time.time()})
    seal_run(run_dir)
    record = load_run_data(run_dir)
    planned, environment = run.planned, collect_environment()
    machine = ", ".join(environment["gpus"]) or f"{environment['cpu']}, {environment['cores']} cores"
    tokens = int(record.stages[0].last_metric("tokens") or planned["tokens"])
    digests = digest_texts(run.recipe, read_newest_state(run_dir, record.stages[0].name).get("data"))
    past = PastRun(
        time.strftime("%Y-%m-%d"),
        run.recipe.name,
        describe_data(run.recipe, digests) if digests else str(planned["data"]),
        machine,
        run.budget.seconds,
        int(planned["parameters"]),
        tokens,
        count_source_passes(record.stages[0].done.get("sources"), run.recipe.pretrain.largest_source),
        measure_later_flops(run, record),
        {"seconds": float(planned["seconds"]), "memory": float(planned["memory"])}
        | {forecast.name: forecast.value for forecast in run.forecasts if forecast.name not in ("seconds", "memory")},
        measure_run(record),
        **identify_first_step(next(iter(record.stages[0].metrics), {})),
        sources=", ".join(list_mixture_sources(run.recipe.pretrain)),
        wordings=str(planned.get("wordings", "")),
    )
    try:
        append_past_run(past)
    except OSError as error:
        log(f"not kept for later forecasts: {describe_unwritable(user_file(), error)}")
    return past


def count_source_passes(reading: Any, largest: str) -> float | None:
    """Returns how often pretraining has read the rows of its largest source, as done.json says; None without that.

    Args:
        reading: `sources` of done.json. Tasks stand in it together; where one is the largest source, what was read most
            counts.
        largest: name of the source.
    """
    rows = [each for each in reading if isinstance(each, dict)] if isinstance(reading, list) else []
    rows = [each for each in rows if all((finite_number(each.get(key)) or 0) > 0 for key in ("read", "rows"))]
    named = [each for each in rows if each.get("source") == largest] or rows
    most = max(named, key=lambda each: float(each["read"]), default=None)
    return float(most["read"]) / float(most["rows"]) if most else None


def measure_later_flops(run: BudgetedRun, record: RunData) -> float:
    """Returns the FLOPs after pretraining, of the steps that were made and the tokens that were planned of each."""
    planned = {stage.name: stage for stage in run.stages}
    total = sum(planned[stage.name].steps for stage in record.stages[1:] if stage.name in planned)
    made = sum(stage.last_step for stage in record.stages[1:] if stage.name in planned)
    return float(run.planned["later_flops"]) * (made / total if total else 0.0)
