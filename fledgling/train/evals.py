"""The evaluations of a stage: bits per byte, chat tasks, CORE, samples. Each is an `Eval` that the loop calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from fledgling.config import LoopConfig, RLConfig, StageConfig, UserError
from fledgling.data.shards import TokenShard
from fledgling.data.stream import RowSource
from fledgling.evals import chat, samples
from fledgling.evals.bpb import measure_bits, measure_ratio, read_first_rows
from fledgling.evals.core import run_core
from fledgling.evals.core_results import CoreSettings, compute_core, list_core_measurements
from fledgling.evals.likelihood import Scorer
from fledgling.evals.measurement import Measurement
from fledgling.evals.sparsity import measure_activation_sparsity
from fledgling.files import resolve_data_root
from fledgling.tasks import GENERATED_TASKS, load_task
from fledgling.tasks.core import find_core_bundle, read_core_tasks
from fledgling.tasks.exam_names import exam_names
from fledgling.tasks.task import DEV, PRACTICE, TEST, TRAIN
from fledgling.text.compression import measure_compressed_bpb
from fledgling.train.context import StageContext
from fledgling.train.stage import Eval

VALIDATION_ROWS = 512  # of held-out text at the end of a stage
FIRST_ROWS = 64  # of these, measured in between and, as a series of their own, at the end too
FIRST_QUESTIONS = 4  # the first 1 / 4 of an exam's questions, likewise
MAX_COMPRESSED_BYTES = 64_000_000  # of training text up to which compressors are run for comparison


def build_evals(
    config: LoopConfig, context: StageContext, validation: tuple[TokenShard, ...], micro_batch_size: int
) -> tuple[Eval, ...]:
    """Returns bits per byte (if there are held-out documents), chat tasks (if the stage learns some), and samples."""
    evals = []
    if validation:
        rows = RowSource(validation, "crop", context.model.config.context, seed=0, bos=context.tokenizer.bos)
        evals.append(Eval("bits_per_byte", config.eval_every, partial(_measure_bpb, context, rows, micro_batch_size)))
        if context.model.config.activation == "relu2":
            measure = partial(_measure_sparsity, context, rows, micro_batch_size)
            evals.append(Eval("zeros", config.eval_every, measure))
    names = list_available_exams(exam_names(config, context.recipe.sft.mixture), context)
    if names:
        if isinstance(config, RLConfig):
            _report_missing_exams(config, context)
        evals.append(Eval("chat", config.eval_every, partial(_run_exams, context, names, config.eval_questions)))
    evals.append(Eval("samples", config.sample_every, partial(_log_samples, context, bool(names))))
    return tuple(evals)


def list_available_exams(names: Sequence[str], context: StageContext) -> list[str]:
    """Returns the tasks whose questions can be read; logs the others, which only a resumed stage may lack."""
    found = []
    for name in names:
        try:
            load_task(name, context.recipe.run.data_dir).list_exams({TEST: 1, DEV: 1})
            found.append(name)
        except UserError as error:
            context.recorder.log_notice(f"no exam in {name}: {error}")
    return found


def _report_missing_exams(config: RLConfig, context: StageContext) -> None:
    """Logs which skills of RL have no exam in practice wordings, because RL samples answers to every such prompt."""
    skills = [name for name, weight in config.tasks.items() if weight > 0 and name in GENERATED_TASKS]
    missing = [name for name in skills if not load_task(name).list_exams({PRACTICE: 1})]
    if missing:
        context.recorder.log_notice(f"no exam in practice wordings of {', '.join(missing)}: RL reads all its prompts")


def build_compression_eval(source: str, context: StageContext) -> Eval:
    """Returns the comparison of the model with a compressor on a document source, at the end of a stage."""
    return Eval("compression", 0, partial(_measure_compression, context, source))


def build_core_evals(config: StageConfig, context: StageContext) -> tuple[Eval, ...]:
    """Returns the evaluation of CORE if `core_every` is set; logs a notice if its files are missing."""
    if not config.core_every:
        return ()
    root = resolve_data_root(context.recipe.run.data_dir)
    tasks = read_core_tasks(root) if find_core_bundle(root) else []
    scorer, settings = Scorer(context.engine, context.world), CoreSettings(config.core_max_per_task)

    def measure(step: int, last: bool) -> list[Measurement]:
        if step == 0:  # an untrained model scores chance, and CORE takes minutes
            if not tasks:
                how = "`fledgling data fetch core` brings it there"
                context.recorder.log_notice(f"CORE will not be measured: no bundle under {root}; {how}")
            return []
        if not tasks:
            return []
        results = run_core(scorer, tasks, settings)
        return list_core_measurements(results, include_mean=True) if last else [compute_core(results)]

    return (Eval("core", config.core_every, measure),)


def _measure_bpb(
    context: StageContext, rows: RowSource, micro_batch_size: int, step: int, last: bool
) -> list[Measurement]:
    """Measures the first rows and, at the end of the stage, all rows too: two series, which differ in n."""
    batches = read_first_rows(rows, VALIDATION_ROWS if last else FIRST_ROWS, micro_batch_size)
    bits = measure_bits(context.model, batches, context.tokenizer.byte_lengths(), context.world)
    parts = [bits.first_rows(FIRST_ROWS), bits] if bits.num_rows > FIRST_ROWS else [bits]
    return [measure_ratio("bits_per_byte", part, part.bits, part.bytes) for part in parts]


def _measure_sparsity(
    context: StageContext, rows: RowSource, micro_batch_size: int, step: int, last: bool
) -> list[Measurement]:
    return measure_activation_sparsity(context.model, read_first_rows(rows, micro_batch_size, micro_batch_size))


def _measure_compression(context: StageContext, source: str, step: int, last: bool) -> list[Measurement]:
    """Measures the bits per byte of PPMd, or else xz, on the held-out text, after it has seen the training text."""
    if not (last and context.world.is_main):
        return []
    try:
        is_large = context.preparer.documents.is_large(source)
    except UserError as error:
        context.recorder.log_notice(f"compression is not measured: {error}")
        return []
    if is_large:
        return []
    train, held_out = context.preparer.documents.read_split(source)
    if not (held_out and sum(document.num_bytes for document in train) < MAX_COMPRESSED_BYTES):
        return []
    context.recorder.log_notice(
        f"compressing all {len(held_out):,} held-out documents, for comparison with the model's bits per byte of at "
        f"most {VALIDATION_ROWS} rows"
    )
    texts, held_out_texts = ((document.text for document in documents) for documents in (train, held_out))
    values = measure_compressed_bpb(texts, held_out_texts, only_strongest=True)
    if values["note"]:
        context.recorder.log_notice(f"comparison with compressors: {values['note']}")
    return [
        Measurement(f"bits_per_byte of {name}", value, n=len(held_out))  # documents
        for name, value in values.items()
        if isinstance(value, float)
    ]


def _run_exams(context: StageContext, names: list[str], count: int, step: int, last: bool) -> list[Measurement]:
    """Measures the chat tasks on their first questions and, at the end of the stage, on all of them too.

    The exams are built whole and cut, and the first questions are always answered in the same batches, so that the
    same weights have one value: two series, which differ in n. The dev wordings, which recipes are tuned by,
    have the first questions only; the test wordings are measured at the end only.
    """
    recipe, first = context.recipe, max(1, count // FIRST_QUESTIONS)
    practiced = [name for name, weight in recipe.rl.tasks.items() if weight > 0] if "rl" in recipe.stages else []
    counts = {TRAIN: count, DEV: first, PRACTICE: count, **({TEST: count} if last else {})}
    exams = chat.build_exams(names, counts, practiced, recipe.run.data_dir)

    def answer(part: slice) -> list[list[chat.ExamAnswer]]:
        cut = [replace(exam, questions=exam.questions[part]) for exam in exams]
        return chat.answer_exams(context.engine, cut, world=context.world)

    answers, measurements = answer(slice(first)), []
    for exam, part in zip(exams, answers, strict=True):
        is_series = not exam.name.endswith(f"_{TEST}") or len(exam.questions) <= first
        measurements += chat.measure_exam(exam.name, part) if is_series else []
    if last:
        for exam, part, rest in zip(exams, answers, answer(slice(first, None)), strict=True):
            measurements += chat.measure_exam(exam.name, [*part, *rest]) if rest else []
            if cropped := sum(answer.cropped for answer in (*part, *rest)):
                what = f"{cropped:,} of {len(part) + len(rest):,} questions are longer than model.context has room for"
                context.recorder.log_notice(f"exam {exam.name}: {what}, and lose their beginning")
    return [measurement.with_tools(context.engine.tool_name) for measurement in measurements]


def _log_samples(context: StageContext, with_replies: bool, step: int, last: bool) -> list[Measurement]:
    """Records continuations of fixed prompts, and replies where the stage learns conversations."""
    context.engine.refresh_weights()
    pairs = samples.sample_continuations(context.engine)
    if with_replies:
        pairs = pairs + samples.sample_chat_replies(context.engine)
    for prompt, text in pairs:
        context.recorder.log_sample(step, prompt, text)
    return []
