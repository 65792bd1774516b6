"""Checks every stage of a recipe before the first step of any: data, steps, batch, memory, and the step's shapes.

Nothing is prepared or trained. Lengths of conversations are measured on samples, with the run's tokenizer if it has one
and else from characters. What a check finds is a line in `StageCheck.problems`; `require_sound` makes them an error.
Start with `check_recipe`.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from fledgling.config import DPOConfig, LoopConfig, ModelConfig, Recipe, RLConfig, StageConfig, UserError
from fledgling.config.unused_settings import describe_unused
from fledgling.evals.chat import encode_question
from fledgling.files import resolve_data_root, split_columns
from fledgling.plan import memory
from fledgling.plan.plan import CHARACTERS_PER_TOKEN
from fledgling.plan.published_sizes import published_sizes
from fledgling.plan.split import (
    MAX_MICRO_BATCH_ROWS,
    choose_split,
    empty_share,
    explain_empty_slots,
    explain_memory_shortage,
    require_row_each,
)
from fledgling.plan.stage_length import SourceSize, derive_dpo_steps, derive_length, derive_rl_steps
from fledgling.plan.stage_step import stage_step
from fledgling.plan.teacher import plan_teacher
from fledgling.record.jsonl import format_bytes
from fledgling.runtime.device import DeviceSetup
from fledgling.runtime.world import World
from fledgling.sandbox.process import get_layers
from fledgling.tasks import load_task
from fledgling.tasks.core import find_core_bundle
from fledgling.tasks.epoch_reader import sample_conversations
from fledgling.tasks.exam_names import exam_names
from fledgling.tasks.task import Question
from fledgling.text.conversation import render_prompt
from fledgling.text.tokenizer import Tokenizer
from fledgling.train.check_outside import (
    require_adapter,
    require_document,
    require_fitting_teacher,
    require_fp8_products,
    require_run_settings,
)
from fledgling.train.data_preparer import DataPreparer, split_mixture
from fledgling.train.device_step import make_device_step
from fledgling.train.distill.build import require_valid_teaching
from fledgling.train.distill.teacher import read_teacher_config
from fledgling.train.dpo import require_valid_dpo
from fledgling.train.init_from import find_model_config
from fledgling.train.preference_data import check_preferences, load_preferences
from fledgling.train.resume_check import read_prepared_data
from fledgling.train.rl.build import require_valid_rl_config
from fledgling.train.rl.reward import require_rewards
from fledgling.train.source_sizes import count_source_sizes
from fledgling.train.stage_rows import require_data
from fledgling.train.stage_settings import describe_unused_here, require_valid_settings
from fledgling.train.trial_step import trace_step

SAMPLED_PROMPTS = 64


@dataclass(frozen=True)
class StageCheck:
    """What is known of a stage before it starts; None where it is known only later."""

    stage: str
    steps: int | None = None
    rows: int | None = None  # of a step, over all ranks; None for DPO and RL
    split: memory.TrainingStep | None = None  # rows of a micro-batch and passes of a rank
    bytes: int | None = None  # of a rank at its peak, by the planner's count
    checkpoint_bytes: int = 0  # 0: not known
    problems: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


def _is_known(problem: str, problems: Sequence[str]) -> bool:
    """Returns whether a problem is among others already, as it is or after the setting that it is of."""
    return any(each == problem or each.endswith(f": {problem}") for each in problems)


@dataclass
class _Findings:
    """Collects the problems and notices of one stage."""

    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Runs a block; the line of its UserError becomes a problem, once."""
        try:
            yield
        except UserError as error:
            if not _is_known(str(error), self.problems):
                self.problems.append(str(error))

    def attempt(self, check: Callable[[], object]) -> None:
        """Runs a check, as `collecting` does."""
        with self.collecting():
            check()


def check_recipe(recipe: Recipe, stages: Sequence[str], setup: DeviceSetup, world: World) -> list[StageCheck]:
    """Returns a check of each of `stages`, all of them, whatever is wrong with the first."""
    run_dir = Path(recipe.run.out)
    preparer = DataPreparer(recipe, run_dir)
    tokenizer = None
    if preparer.documents.tokenizer_file.exists():
        tokenizer = Tokenizer.load(preparer.documents.tokenizer_file)
    found = _Findings()
    found.problems += map(str, require_run_settings(recipe, preparer, world))
    config = None
    with found.collecting():
        config = find_model_config(recipe, run_dir)
    context = _CheckContext(recipe, preparer, count_source_sizes(recipe), tokenizer, setup, world)
    checks = [_check_stage(name, config, context) for name in stages]
    if checks and checks[0].stage == recipe.stages[0]:
        found.notices += describe_unused(recipe)
    if checks:
        own = [each for each in checks[0].problems if not _is_known(each, found.problems)]
        problems, notices = (*found.problems, *own), (*found.notices, *checks[0].notices)
        checks[0] = replace(checks[0], problems=problems, notices=notices)
    return _check_disk(checks, run_dir)


def count_kept_checkpoints(table: LoopConfig, steps: int | None) -> int:
    """Returns how many checkpoints of a stage are on the disk when its last one is written."""
    if not table.save_every:
        return 1
    return min(table.keep_checkpoints + 1, 1 if steps is None else -(-steps // table.save_every))


def _check_disk(checks: list[StageCheck], run_dir: Path) -> list[StageCheck]:
    """Finds the first stage whose checkpoints do not fit on the disk next to those of the stages before it."""
    parent = next(folder for folder in (run_dir, *run_dir.absolute().parents) if folder.is_dir())
    free: float = shutil.disk_usage(parent).free
    needed, found = 0, []
    for check in checks:
        needed += check.checkpoint_bytes
        if check.checkpoint_bytes and needed > free:
            problem = (
                f"the checkpoints of the stages up to it take {format_bytes(needed)}, and {parent} has "
                f"{format_bytes(int(free))} free: make space, or set run.out to another disk"
            )
            check = replace(check, problems=(*check.problems, problem))
            free = math.inf  # named once
        found.append(check)
    return found


def require_sound(checks: Iterable[StageCheck]) -> None:
    """Raises UserError with every problem, one a line."""
    lines = [f"{check.stage}: {problem}" for check in checks for problem in check.problems]
    if lines:
        raise UserError("\n".join(dict.fromkeys(lines)))


@dataclass(frozen=True)
class _CheckContext:
    """What the checks of all stages share. traced: the errors of steps that were traced, by what decides a step."""

    recipe: Recipe
    preparer: DataPreparer
    sizes: Mapping[str, SourceSize]
    tokenizer: Tokenizer | None
    setup: DeviceSetup
    world: World
    traced: dict[object, str] = field(default_factory=dict)


def _check_stage(name: str, config: ModelConfig | None, context: _CheckContext) -> StageCheck:
    """Checks one stage; config: of its model, None where that is not known yet."""
    found, table = _Findings(), context.recipe.stage_config(name)
    found.notices += describe_unused_here(context.recipe, name, context.world.device.type, context.world.size)
    _check_sources(name, context, found)
    if config is None:  # run.init_from decides it, and cannot be read
        return StageCheck(name, problems=tuple(found.problems), notices=tuple(found.notices))
    rows, steps = _check_length(name, config, context, found)
    step = _find_step(name, config, context, found)
    split, peak = _check_memory(name, config, step, rows, context, found)
    if not found.problems:
        _check_shapes(name, config, step, context, found)
    size = memory.checkpoint_bytes(config, step) * count_kept_checkpoints(table, steps)
    return StageCheck(name, steps, rows, split, peak, size, tuple(found.problems), tuple(found.notices))


def _check_sources(name: str, context: _CheckContext, found: _Findings) -> None:
    """Finds data, a sandbox and CORE's files that the stage needs and this machine lacks."""
    recipe, table = context.recipe, context.recipe.stage_config(name)
    found.attempt(lambda: require_data(recipe, [name], read_prepared_data(Path(recipe.run.out), name)))
    if "humaneval" in exam_names(table, recipe.sft.mixture) or (
        isinstance(table, RLConfig) and "humaneval" in table.tasks
    ):
        found.attempt(get_layers)  # its answers are programs, which no machine runs without the sandbox
    measures_core = isinstance(table, StageConfig) and table.core_every > 0
    if measures_core and not find_core_bundle(resolve_data_root(context.preparer.data_dir)):
        found.notices.append("CORE will not be measured: no bundle; `fledgling data fetch core` brings it")


def _check_length(
    name: str, config: ModelConfig, context: _CheckContext, found: _Findings
) -> tuple[int | None, int | None]:
    """Returns (rows of a step, steps) as far as they are known, after reading a sample of what the stage learns."""
    table = context.recipe.stage_config(name)
    if isinstance(table, RLConfig):
        found.attempt(lambda: require_valid_rl_config(table, context.world))
        steps, questions = _check_prompts(table, config, context, found)
        found.attempt(lambda: require_rewards(table, questions))
        return None, steps
    if isinstance(table, DPOConfig):
        return None, _check_pairs(context.recipe, config, context.tokenizer, found)
    length = _check_mixture(name, config, context, found)
    if length is None:
        return None, None
    found.attempt(lambda: require_row_each(name, table, length[0], context.world.size))
    return length


def _find_step(name: str, config: ModelConfig, context: _CheckContext, found: _Findings) -> memory.TrainingStep:
    """Returns one row of the stage's step, as the planner counts it; finds settings that do not fit together."""
    recipe, setup, world = context.recipe, context.setup, context.world
    step = make_device_step(recipe.optimizer, config, setup, world)
    teacher = None
    found.attempt(lambda: require_valid_settings(recipe, name))
    with found.collecting():
        require_valid_teaching(recipe, name, config)
        require_fitting_teacher(recipe, name, config)
        teacher = plan_teacher(recipe, name, read_teacher_config(recipe, name))
    has_weights = name != recipe.stages[0] or recipe.run.init_from is not None
    found.attempt(lambda: require_adapter(recipe, name, config, has_weights))
    found.attempt(lambda: require_fp8_products(setup, config))
    adapter = recipe.adapter if recipe.adapter.trains_in(name) else None
    return stage_step(step, recipe.stage_config(name), adapter, teacher)


def _check_memory(
    name: str,
    config: ModelConfig,
    step: memory.TrainingStep,
    rows: int | None,
    context: _CheckContext,
    found: _Findings,
) -> tuple[memory.TrainingStep | None, int | None]:
    """Returns the step split into micro-batches, and the bytes of a rank at its peak; None where they are not known.

    rows: of a step; None for DPO and RL, and where it is not known.
    """
    table, world, limit = context.recipe.stage_config(name), context.world, context.setup.memory_limit
    recompute = context.recipe.run.recompute
    if rows is None and isinstance(table, StageConfig):
        return None, None
    try:
        step_rows = MAX_MICRO_BATCH_ROWS * world.size if rows is None else rows
        split = choose_split(config, step_rows, limit, step, table.micro_batch_size, recompute)
        peak = memory.estimate_peak_memory(config, split)["total"]
    except UserError as error:
        found.problems.append(str(error))
        return None, None
    if not memory.fits_memory(config, split, limit):
        shortage = explain_memory_shortage(config, split, limit)
        is_certain = world.device.type != "cpu"  # a CPU's limit is half of the machine's memory
        (found.problems if is_certain else found.notices).append(shortage)
    if rows is not None and (empty := empty_share(rows, split)) > 0:
        reason = explain_empty_slots(rows, split.rows, world.size)
        found.notices.append(f"{reason}: {empty:.0%} of the work of a step is on no row")
    return split, peak


def _check_shapes(
    name: str, config: ModelConfig, step: memory.TrainingStep, context: _CheckContext, found: _Findings
) -> None:
    """Finds a step that cannot be computed, by tracing it on meta tensors; steps of one kind are traced once."""
    table, teacher = context.recipe.stage_config(name), step.teacher
    rounding = getattr(table, "quantization_aware", "")
    key = (type(table), getattr(table, "algorithm", ""), step.has_reference_model, step.adapter, teacher, rounding)
    if key not in context.traced:
        context.traced[key] = _trace(context.recipe, name, config, context.setup, teacher.config if teacher else None)
    found.problems += [context.traced[key]] if context.traced[key] else []


def _trace(recipe: Recipe, name: str, config: ModelConfig, setup: DeviceSetup, teacher: ModelConfig | None) -> str:
    """Returns the first line of the error of a step on meta tensors, or ""."""
    try:
        trace_step(recipe, name, config, setup.dtype, teacher)
    except UserError as error:
        return str(error)
    except (RuntimeError, ValueError, NotImplementedError, AssertionError) as error:
        return f"its step cannot be computed: {' '.join(str(error).split())[:200] or type(error).__name__}"
    return ""


def _check_mixture(
    name: str, config: ModelConfig, context: _CheckContext, found: _Findings
) -> tuple[int, int | None] | None:
    """Returns (rows of a step, steps) of a supervised stage as far as they are known, and samples its conversations."""
    recipe, preparer, tokenizer = context.recipe, context.preparer, context.tokenizer
    table: StageConfig = getattr(recipe, name)
    length = None
    with found.collecting():
        parts = split_mixture(table.mixture)
        kept = read_prepared_data(Path(recipe.run.out), name) or {}  # their texts need not be here
        for source in parts.documents:
            if source not in kept and Path(split_columns(source)[0]).exists():
                found.attempt(partial(require_document, source, recipe.run.data_dir))
        if name == "pretrain" and table.num_epochs is None and (length := derive_length(recipe, name, config, {})):
            return length[:2]
        known = published_sizes(config.context) | dict(context.sizes)
        for source in (*parts.tasks, *parts.conversations):
            with suppress(UserError) if source in kept else found.collecting():
                if tokenizer is not None:
                    known[source] = preparer.measure_source(source, tokenizer, config.context)
                if source in parts.conversations and table.train_on == "assistant":
                    _check_conversations(source, preparer, config.context, tokenizer, found)
        length = derive_length(recipe, name, config, known)
    if length is None:
        if not found.problems:
            found.notices.append("its steps are known once its text is prepared")
        return None
    rows, steps, is_assumed = length
    if is_assumed or (tokenizer is None and table.batch_tokens is None):
        found.notices.append("its batch and steps are estimated: its conversations are no tokens yet")
    return rows, steps


def _check_conversations(
    source: str, preparer: DataPreparer, context: int, tokenizer: Tokenizer | None, found: _Findings
) -> None:
    """Finds a source of which every sampled prompt fills the context, so that no answer is left to learn from."""
    lengths = []
    for conversation in sample_conversations(preparer.conversation_source(source), preparer.seed, SAMPLED_PROMPTS):
        messages = conversation["messages"]
        end = next(i for i, message in enumerate(messages) if message["role"] == "assistant")
        if tokenizer:
            lengths.append(float(len(render_prompt(tokenizer, {"messages": messages[:end]}))))
        else:
            lengths.append(sum(len(str(message["content"])) for message in messages[:end]) / CHARACTERS_PER_TOKEN)
    if lengths and min(lengths) > context:
        found.problems.append(
            f"{source}: the prompts of all {len(lengths)} sampled conversations fill model.context, {context} tokens, "
            "so nothing can be learned from them; raise model.context or shorten the prompts"
        )


def _check_prompts(
    table: RLConfig, config: ModelConfig, context: _CheckContext, found: _Findings
) -> tuple[int | None, list[Question]]:
    """Returns the steps of RL as far as they are known, and a question of each task; samples its prompts."""
    recipe, tokenizer = context.recipe, context.tokenizer
    max_prompt_tokens = config.context - min(table.max_new_tokens, config.context // 2)
    steps, lengths, questions = table.steps, [], []
    prompts = {name: size.examples for name, size in (published_sizes(config.context) | dict(context.sizes)).items()}
    for name in (name for name, weight in table.tasks.items() if weight > 0):
        with found.collecting():
            task = load_task(name, recipe.run.data_dir)
            prompts[name] = len(task) or math.inf
            for index in range(min(len(task) or SAMPLED_PROMPTS, SAMPLED_PROMPTS)):
                question = task.get_practice_question(index, recipe.seed)
                questions += [] if index else [question]
                estimate = len(question.prompt) / CHARACTERS_PER_TOKEN
                lengths.append(len(encode_question(tokenizer, question)) if tokenizer else estimate)
    if all(name in prompts for name, weight in table.tasks.items() if weight > 0):
        with found.collecting():
            steps = derive_rl_steps(table, prompts)
    longer = sum(length > max_prompt_tokens for length in lengths)
    limit = f"{max_prompt_tokens} tokens, which model.context leaves next to rl.max_new_tokens"
    if longer and longer == len(lengths):
        found.problems.append(f"all of {longer} sampled prompts are longer than {limit}; raise model.context")
    elif longer:
        found.notices.append(f"{longer} of {len(lengths)} sampled prompts are longer than {limit}")
    return steps, questions


def _check_pairs(recipe: Recipe, config: ModelConfig, tokenizer: Tokenizer | None, found: _Findings) -> int | None:
    """Returns the steps of DPO as far as they are known, and reads its pairs."""
    table = recipe.dpo
    with found.collecting():
        pairs = require_valid_dpo(recipe)
        if tokenizer is None:
            left_out = check_preferences(pairs, table.labels_answers)
            found.notices += [*filter(None, [left_out]), "its pairs are measured once the tokenizer exists"]
            return table.steps
        row_tokens = config.context + 1
        rollouts = load_preferences(pairs, table.labels_answers, tokenizer, row_tokens, found.notices.append)
        return derive_dpo_steps(table, len(rollouts))
    return table.steps
