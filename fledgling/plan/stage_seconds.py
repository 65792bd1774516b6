"""The seconds of a run by stage: steps, evaluations, and what happens once, in the time that a user waits.

Steps are FLOPs at a speed. An evaluation is counted in tokens of training that take as long: a row of held-out text a
third of its tokens (a forward pass), a question `QUESTION_TOKENS`. What does not scale with the model (starting, the
tokenizer, conversations that are written for a stage, what an answer takes besides its products, compressors that read
the same text) is counted in seconds of a core, and takes longer on a slower processor: `fledgling.plan.core_speed`
measures it, since the FLOP/s of a small model do not say it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from fledgling.config import Recipe, StageConfig
from fledgling.plan.flops import training_flops_per_token

# Measured in quickstarts on two cores of a Xeon at 5,050 tokens a second: 2,344 questions and 512 rows in 15.1 s, the
# compressors in 91 s; and of an EPYC, which takes .7 of its time for other work: the same questions and rows in 4.0 s
# at 43,000 tokens a second (depth 2) and in 9.1 s at 10,000 (depth 4), .46 million tokens of conversations a second,
# the tokenizer and the embedded corpus in 8.7 s. Seconds of a core are of one of the Xeon's: docs/budgets.md.
QUESTION_TOKENS = 9.5  # of training, that take as long as the products of an answer
QUESTION_SECONDS = 0.0014  # of what else an answer takes
CONVERSATION_TOKENS = 3.2e5  # a second, of conversations that are generated and tokenized
FIRST_ROWS, LAST_ROWS = 64, 512  # of held-out text, between and at the end (`fledgling.train.evals`)
EXAMS_PER_SKILL = 2.3  # exams of a skill: train, practice, and dev or test wordings
EARLY_EVAL_FRACTION = 0.25  # of an exam's questions, before the last step
# Of training, for an item of CORE: a third of 521 tokens of a forward pass, that is of 71,835 tokens/s x 11 minutes /
# 91,037 items (docs/evaluation.md, Measured).
CORE_ITEM_TOKENS = 174.0
CORE_TASKS = 22
REFERENCE_FLOPS = 1.2e11  # FLOP/s of training on those two cores
REFERENCE_FLOPS_PER_TOKEN = 23_592_960  # of the model that reached them; smaller ones reach less
START_SECONDS = 0.8  # of a stage: loading, opening its data, the last save
COMPILE_SECONDS = 2.0  # of the first stage, whose compiled code is on the disk
RUN_SECONDS = 2.3  # of a run: importing what checks its stages
CHECK_SECONDS = 0.1  # of a stage: its check before the first one
# On two cores: a tokenizer, and the embedded corpus tokenized. 12.4 s with 1,024 entries and 4,000 conversations, times
# what 1,536 and 30,000 take on an EPYC, 8.2 of 7.1 s.
TOKENIZER_SECONDS = 14.4
# Of one's own text, for each byte, on one of those cores: read, split and tokenized where a source is held in memory;
# the same where its files are tokenized one by one, on all cores; and to train a tokenizer. Measured as processor time
# of 61 to 320 MB of books (2.3e-7, 9.2e-8 and 9.5e-8 s) on an EPYC without AVX-512 that took 2.4 times as long
# (`core_speed`, next to other processes).
TEXT_SECONDS, LARGE_TEXT_SECONDS, TRAINED_TEXT_SECONDS = 9.7e-8, 3.8e-8, 4.0e-8
# On two cores: PPMd over the embedded corpus, at the end of pretraining: 5.0 of the 23 s that it takes with xz and zstd
# on an EPYC, of 53 s, the geometric mean of all three there and on the Xeon.
COMPRESSION_SECONDS = 11.5
FINISH_SECONDS = 1.0  # the report
# Before a run with a budget: starting and measuring, with empty caches. 42 s on an EPYC (share .71), most of them
# compiling, as `speedrun --minutes 12` prints; without compiling a third of it is assumed.
MEASURING_SECONDS, MEASURING_EAGERLY_SECONDS = 60.0, 20.0
SLOWEST, FASTEST = 8.0, 0.25  # a processor's time for such work, as a share of that machine's
PARALLEL_CORES = 2  # that the tokenizer's and the compressors' seconds are of
ACCELERATOR_SHARE = 2.0  # the same on a GPU: most of it is compiling
EMBEDDED = "embedded"
# Seconds of a step as a share of the plan's: answers of reinforcement learning are shorter than the planned rows.
STEP_RATIO = {"rl": 0.5}  # answers of 15 tokens on average


@dataclass(frozen=True)
class OwnText:
    """Bytes of the user's own documents that are prepared before a stage, all of them however few steps follow.

    Attributes:
        small: of sources that are held in memory.
        large: of those whose files are tokenized one by one.
        trained: that the tokenizer is trained on.
    """

    small: float = 0.0
    large: float = 0.0
    trained: float = 0.0

    def seconds(self, core: CoreTime) -> float:
        """Returns how long that takes."""
        alone = TEXT_SECONDS * self.small + TRAINED_TEXT_SECONDS * self.trained
        return alone * core.share + LARGE_TEXT_SECONDS * self.large * core.parallel / PARALLEL_CORES


@dataclass(frozen=True)
class StageContent:
    """What the time of a stage depends on besides its steps.

    Attributes:
        exams: how many skills it is examined on.
        generated: the share of its rows that are generated conversations, which are written before its first step. The
            time of sets that are read is not counted.
        text: the user's own text that it is the first to read.
    """

    exams: int = 0
    generated: float = 0.0
    text: OwnText = field(default_factory=OwnText)


@dataclass(frozen=True)
class EvaluationPlan:
    """Which evaluations a run with a budget makes.

    Attributes:
        text: what is left out, for the user; "" where nothing is.
        compressors: the comparison with a compressor.
        between: evaluations and samples at the beginning of a stage and in between, besides those at its end.
        questions: the share of the recipe's questions.
        every_stage: exams and samples at the end of each stage, not of the last one alone.
    """

    text: str = ""
    compressors: bool = True
    between: bool = True
    questions: float = 1.0
    every_stage: bool = True

    def keeps(self, stage: str, name: str, is_last: bool) -> bool:
        """Returns whether an evaluation of a stage is made: `name` as in `fledgling.train.stage.Eval`."""
        if name == "compression":
            return self.compressors
        return self.every_stage or is_last or (stage == "pretrain" and name == "bits_per_byte")


EVALUATIONS = (
    EvaluationPlan(),
    EvaluationPlan("no comparison with a compressor", compressors=False),
    EvaluationPlan("no comparison with a compressor, evaluations at the end of a stage only", False, False),
    EvaluationPlan(
        "no comparison with a compressor, evaluations at the end of the run, bits per byte after pretraining too",
        *(False, False, 1.0, False),
    ),
    EvaluationPlan(
        "no comparison with a compressor, half the questions, at the end of the run, bits per byte after pretraining",
        *(False, False, 0.5, False),
    ),
)


@dataclass(frozen=True)
class StageSeconds:
    """The time of a stage.

    Attributes:
        name: of the stage.
        steps: optimizer steps; a share of one where a part of the stage is meant.
        step_seconds: of one step.
        start: seconds before its first step, `end`: after its last, `between`: of evaluations in between.
    """

    name: str
    steps: float
    step_seconds: float
    start: float = 0.0
    end: float = 0.0
    between: float = 0.0

    @property
    def fixed_seconds(self) -> float:
        """Seconds that are not of steps."""
        return self.start + self.between + self.end

    @property
    def seconds(self) -> float:
        """Seconds of the whole stage."""
        return self.steps * self.step_seconds + self.fixed_seconds

    def remaining_part(self, steps: float, rest: float) -> StageSeconds:
        """Returns what is ahead of a stage that has begun: `steps`, and the share `rest` of what is between them."""
        return replace(self, steps=steps, start=0.0, between=rest * self.between)


def total_seconds(stages: Iterable[StageSeconds]) -> float:
    """Returns the seconds of stages in order."""
    return sum(stage.seconds for stage in stages)


@dataclass(frozen=True)
class CoreTime:
    """The time of work that is not training, as a share of the measured machine's.

    Attributes:
        share: of what one core does.
        parallel: of what is spread over `PARALLEL_CORES`.
        writes: whether conversations are counted, whose time next to an accelerator is not measured.
    """

    share: float
    parallel: float
    writes: bool = True


def estimate_core_time(
    kind: str, flops_per_second: float, flops_per_token: float, share: float | None = None, cores: int = PARALLEL_CORES
) -> CoreTime:
    """Returns how many times as long as on the reference machine work takes that is not training: two ratios.

    On a CPU the ratio is clamped to `FASTEST` .. `SLOWEST`; on an accelerator it is always `ACCELERATOR_SHARE`.

    Args:
        kind: the torch device type.
        flops_per_second: of training a model of `flops_per_token`, from which the ratio follows where nothing was
            measured. A smaller model than the reference's is expected to make as many tokens, not as many FLOPs.
        share: measured on a CPU (`fledgling.plan.core_speed`); None: it was not.
        cores: of the processor.
    """
    if share is None:
        share = REFERENCE_FLOPS * min(1.0, flops_per_token / REFERENCE_FLOPS_PER_TOKEN) / flops_per_second
    share = min(SLOWEST, max(FASTEST, share)) if kind == "cpu" else ACCELERATOR_SHARE
    return CoreTime(share, share * PARALLEL_CORES / min(PARALLEL_CORES, cores), kind == "cpu")


def estimate_run(
    recipe: Recipe,
    planned: Mapping[str, Mapping[str, Any]],
    steps: Mapping[str, float],
    flops_per_second: float,
    core: CoreTime,
    contents: Mapping[str, StageContent],
    evaluations: EvaluationPlan,
) -> tuple[StageSeconds, ...]:
    """Returns the time of what is before the stages (entry "start"), of each of them, and of what follows ("report").

    Args:
        planned: the stages of a plan of that speed, with the steps of the recipe.
        steps: by stage, that are made instead.
        flops_per_second: the speed of training.
        core: the time of what is not training.
        contents: of the stages; of one that is missing neither exams nor generated conversations.
    """
    first_stage, config = next(iter(steps)), recipe.resolve_model()
    per_token = training_flops_per_token(config)
    read = {name: planned[name]["tokens"] / planned[name]["steps"] * count for name, count in steps.items()}
    is_embedded = all(name == EMBEDDED for name in recipe.tokenizer.sources)
    data = TOKENIZER_SECONDS * core.parallel * is_embedded
    compiling = COMPILE_SECONDS * core.share if recipe.run.compile != "off" else 0.0
    entries = [StageSeconds("start", 0, 0.0, start=(RUN_SECONDS + CHECK_SECONDS * len(steps)) * core.share)]
    for name, count in steps.items():
        table, stage, content = recipe.stage_config(name), planned[name], contents.get(name, StageContent())
        step = stage["hours"] * 3600 / stage["steps"] * STEP_RATIO.get(name, 1.0)
        is_last = name == list(steps)[-1]
        questions = content.exams * EXAMS_PER_SKILL * table.eval_questions * evaluations.questions
        measure = partial(
            evaluation_seconds, context=config.context, tokens_per_second=flops_per_second / per_token, core=core
        )
        one, whole = measure(EARLY_EVAL_FRACTION * questions, FIRST_ROWS), measure(questions, LAST_ROWS)
        if not (evaluations.every_stage or is_last):
            whole = measure(0, LAST_ROWS) if name == "pretrain" else 0.0
        if name == "pretrain" and is_embedded and evaluations.compressors:
            whole += COMPRESSION_SECONDS * core.parallel
        count_between = stage["steps"] // table.eval_every if table.eval_every else 0
        between = one * max(0, count_between - 1)
        if isinstance(table, StageConfig) and table.core_every:
            items = CORE_TASKS * table.core_max_per_task * CORE_ITEM_TOKENS * per_token / flops_per_second
            whole += items if evaluations.every_stage or is_last else 0.0
            between += items * max(0, stage["steps"] // table.core_every - 1)
        between *= evaluations.between
        start = START_SECONDS * core.share + (data + compiling if name == first_stage else 0.0)
        start += content.text.seconds(core)
        start += content.generated * read[name] / CONVERSATION_TOKENS * core.share * core.writes
        start += one if evaluations.between else 0.0
        entries.append(StageSeconds(name, count, step, start, whole, between))
    return (*entries, StageSeconds("report", 0, 0.0, end=FINISH_SECONDS * core.share))


def evaluation_seconds(questions: float, rows: int, context: int, tokens_per_second: float, core: CoreTime) -> float:
    """Returns the seconds of one evaluation of a stage.

    Args:
        questions: that are answered.
        rows: of held-out text, of `context` tokens.
        context: as above.
        tokens_per_second: of training.
        core: the time of what is not training.
    """
    products = (rows * context / 3 + questions * QUESTION_TOKENS) / tokens_per_second
    return products + questions * QUESTION_SECONDS * core.share


def least_seconds(
    recipe: Recipe,
    planned: Mapping[str, Mapping[str, Any]],
    flops_per_second: float,
    core: CoreTime,
    contents: Mapping[str, StageContent],
    count: float,
) -> float:
    """Returns the seconds of a run of `count` steps, with the arguments of `estimate_run`.

    It is pretraining alone, with the fewest evaluations.
    """
    steps = {"pretrain": float(count)}
    return total_seconds(estimate_run(recipe, planned, steps, flops_per_second, core, contents, EVALUATIONS[-1]))
