"""Exams of chat tasks: questions asked as a user would, answered by the model, and scored by their task.

Where the prompt offers letters, one forward pass gives the logits after the prompt, and the most likely of the offered
letters is the answer, so that the score measures knowledge and not obedience to the format. A free-text answer is
generated greedily by the engine, with its tools.

The questions of all exams are grouped by length. A group is what one rank answers and what is saved of an exam that is
stopped; groups depend on the questions alone, so that any number of ranks gives the same answers. A prompt longer than
the model's context loses its beginning and is counted as cropped.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fledgling.evals.episodes import make_tools, read_answers
from fledgling.evals.intervals import combine_intervals, number_clusters, share_interval
from fledgling.evals.likelihood import ContinuationRow, Scorer
from fledgling.evals.measurement import Measurement
from fledgling.infer.engine import Engine
from fledgling.infer.sampling import SamplingParams
from fledgling.record.evaluation_names import split_evaluation_name
from fledgling.runtime.world import World
from fledgling.tasks import ENVIRONMENT_PREFIX, PUBLIC_TASKS, load_task
from fledgling.tasks.task import PRACTICE, TEST, TRAIN, Question, Task, find_constant_baseline, score_answers
from fledgling.text.conversation import render_prompt
from fledgling.text.tokenizer import Tokenizer

LETTER_BATCH_SIZE = 1024  # questions with letters that all ranks score together
GROUP_SIZE = {"cpu": 64, "cuda": 256}  # free-text questions that one rank answers together
MIN_SUBJECT_QUESTIONS = 10  # below it, the accuracy of a subject carries no information

ProgressCallback = Callable[[int, int], None]  # (questions answered, all questions)
AnswersCallback = Callable[[Mapping[int, "ExamAnswer"]], None]  # new answers by the index of their question


@dataclass(frozen=True)
class Exam:
    """A named list of questions of one task."""

    name: str
    task: Task
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class ExamAnswer:
    """A question, the final text of the model's answer, the score, and whether the prompt was cropped.

    For a sampled answer (passk.py) also its number of tokens, and the log-probability in nats of the sampled ones.
    """

    question: Question
    text: str
    score: float
    cropped: bool = False
    num_tokens: int = 0
    logprob: float = 0.0


def build_exams(
    tasks: Sequence[str],
    counts: int | Mapping[str, int],
    practice_tasks: Sequence[str] = (),
    data_dir: str | Path | None = None,
) -> list[Exam]:
    """Returns the exams of `tasks`, each of at most `counts` questions; see `Task.list_exams`.

    Args:
        counts: questions by set of wordings; a number means as many in train and in test wordings.
        practice_tasks: have an exam in practice wordings too, if `counts` has a number for it.

    Raises:
        UserError: for a task with missing or corrupt files.
    """
    by_wordings = {TRAIN: counts, TEST: counts} if isinstance(counts, int) else counts
    without_practice = {wordings: count for wordings, count in by_wordings.items() if wordings != PRACTICE}
    exams = []
    for name in tasks:
        task = load_task(name, data_dir)
        listed = task.list_exams(by_wordings if name in practice_tasks else without_practice)
        exams += [Exam(label, task, questions) for label, questions in listed]
    return exams


def answer_exams(
    engine: Engine,
    exams: Sequence[Exam],
    progress: ProgressCallback | None = None,
    world: World | None = None,
    known_answers: Mapping[int, ExamAnswer] | None = None,
    on_answers: AnswersCallback | None = None,
) -> list[list[ExamAnswer]]:
    """Returns the answers to every exam's questions, in order, the same on all ranks, which must all call it.

    Args:
        known_answers: answers of an earlier run, by index among all questions; complete groups are not asked again.
        on_answers: is called on every rank with the new answers of each group, by index.
    """
    world = world or World(0, 1, 0, engine.device)
    questions = [(exam.task, question) for exam in exams for question in exam.questions]
    prompts, cropped = [], []
    for task, question in questions:
        answer_tokens = 1 if question.choices else min(task.max_new_tokens, engine.context // 2)
        prompt, was_cropped = crop_prompt(encode_question(engine.tokenizer, question), engine.context - answer_tokens)
        prompts.append(prompt)
        cropped.append(was_cropped)
    answers = dict(known_answers or {})
    lengths = list(map(len, prompts))
    for max_new_tokens, groups in schedule_groups(questions, lengths, answers, engine.device.type, world.size):
        is_generated = max_new_tokens > 0
        group_progress = _offset_progress(progress, len(answers), len(questions))
        own_answers: dict[int, ExamAnswer] = {}
        # Generated answers: one group for each rank. Letters: all ranks score each group together.
        for group in groups[world.rank : world.rank + 1] if is_generated else groups:
            group_prompts = [prompts[i] for i in group]
            if is_generated:
                group_questions = [questions[i] for i in group]
                texts = _generate_answers(engine, group_questions, group_prompts, max_new_tokens, group_progress)
            else:
                choices = [questions[i][1].choices for i in group]
                texts = choose_letters(engine, group_prompts, choices, group_progress, world)
            scores = score_answers([questions[i] for i in group], texts)
            for i, text, score in zip(group, texts, scores, strict=True):
                own_answers[i] = ExamAnswer(questions[i][1], text, score, cropped[i])
        rank_answers = world.all_gather_object(own_answers) if is_generated else [own_answers]
        new_answers = {index: answer for part in rank_answers for index, answer in part.items()}
        answers |= new_answers
        if on_answers:
            on_answers(new_answers)
        if progress:
            progress(len(answers), len(questions))
    in_order = iter(answers[i] for i in range(len(questions)))
    return [[next(in_order) for _ in exam.questions] for exam in exams]


def _offset_progress(progress: ProgressCallback | None, offset: int, total: int) -> ProgressCallback | None:
    """Returns a callback for a part of the questions that reports the progress of all of them."""
    return (lambda done, _: progress(offset + done, total)) if progress else None


def schedule_groups(
    questions: Sequence[tuple[Task, Question]],
    lengths: Sequence[int],
    answered: Container[int],
    device: str,
    world_size: int,
) -> Iterator[tuple[int, list[list[int]]]]:
    """Yields what is answered at a time: (tokens of an answer, 0 for letters; groups of indices).

    Generated answers are grouped by their limit of tokens, then by the length of their prompts, at most one group a
    rank. Questions with choices, whose letters are compared, come one group at a time for all ranks together.

    Args:
        questions: with their tasks.
        lengths: tokens of each question's prompt.
        answered: indices of questions that are left out.
        device: type of device, on which the size of a group depends.
        world_size: ranks that answer one group each.
    """
    limits = [0 if question.choices else task.max_new_tokens for task, question in questions]
    for limit in sorted(set(limits)):
        indices = [index for index, own_limit in enumerate(limits) if own_limit == limit]
        group_size = GROUP_SIZE.get(device, 256) if limit else LETTER_BATCH_SIZE
        if limit:
            indices.sort(key=lambda index: lengths[index])
        groups = [indices[start : start + group_size] for start in range(0, len(indices), group_size)]
        groups = [group for group in groups if not all(index in answered for index in group)]
        step = world_size if limit else 1
        for start in range(0, len(groups), step):
            yield limit, groups[start : start + step]


def _generate_answers(
    engine: Engine,
    questions: Sequence[tuple[Task, Question]],
    prompts: list[list[int]],
    max_new_tokens: int,
    progress: ProgressCallback | None,
) -> list[str]:
    sampling = SamplingParams(temperature=0.0, max_new_tokens=max_new_tokens)
    completions = engine.generate(prompts, sampling, progress=progress, tools=make_tools(questions))
    return read_answers(engine.tokenizer, [task for task, _ in questions], [c.tokens for c in completions])


def choose_letters(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    choices: Sequence[Sequence[str]],
    progress: ProgressCallback | None = None,
    world: World | None = None,
) -> list[str]:
    """Returns the most likely of each question's letters as the reply's first token; the first of equally likely ones.

    A letter is one token in every byte-level vocabulary.

    Args:
        engine: answers; its tokenizer encodes the letters.
        prompts: token ids of each question.
        choices: letters that each question offers.
        progress: called with (questions done, all).
        world: the ranks that share the questions; None: this process alone.
    """
    ids = {letter: engine.tokenizer.encode(letter) for letter in sorted({c for offered in choices for c in offered})}
    assert all(len(tokens) == 1 for tokens in ids.values()), f"a letter of several tokens: {ids}"
    scorer, letters = Scorer(engine, world), []
    for start in range(0, len(prompts), LETTER_BATCH_SIZE):
        part = slice(start, start + LETTER_BATCH_SIZE)
        items = [
            [ContinuationRow(np.array([*prompt, *ids[letter]], np.int32), len(prompt)) for letter in offered]
            for prompt, offered in zip(prompts[part], choices[part], strict=True)
        ]
        for offered, scores in zip(choices[part], scorer.score(items), strict=True):
            letters.append(offered[int(np.argmax([score.logprob for score in scores]))])
        if progress:
            progress(len(letters), len(prompts))
    return letters


def crop_prompt(prompt: list[int], max_tokens: int) -> tuple[list[int], bool]:
    """Returns a prompt of at most `max_tokens` tokens, and whether it was cropped.

    bos and the start of the user's turn stay; the tokens after them are removed first.
    """
    return (prompt, False) if len(prompt) <= max_tokens else ([*prompt[:2], *prompt[2 - max_tokens :]], True)


def encode_question(tokenizer: Tokenizer, question: Question) -> list[int]:
    """Returns the question as a user's turn, up to the start of the assistant's turn."""
    return render_prompt(tokenizer, {"messages": [{"role": "user", "content": question.prompt}]})


def measure_exam(name: str, answers: Sequence[ExamAnswer]) -> list[Measurement]:
    """Returns the exam's accuracy with its interval over what its questions share, the best constant answer and chance.

    Questions of several subjects, at least `MIN_SUBJECT_QUESTIONS` of each, also give the accuracy of each subject,
    and their mean, NAME_subjects, with an interval from theirs.
    """
    measurements = [_measure_accuracy(name, answers)]
    subjects: dict[str, list[ExamAnswer]] = {}
    for answer in answers:
        if "subject" in answer.question.facts:
            subjects.setdefault(answer.question.facts["subject"], []).append(answer)
    if len(subjects) > 1 and min(map(len, subjects.values())) >= MIN_SUBJECT_QUESTIONS:
        parts = [_measure_accuracy(name, subjects[subject], subject) for subject in sorted(subjects)]
        mean, low, high = combine_intervals([(m.value, m.low or 0.0, m.high or 0.0) for m in parts])
        measurements += [
            Measurement(f"{name}_subjects", mean, low, high, len(answers), **_describe_clusters(answers)),
            *parts,
        ]
    return measurements


def _measure_accuracy(name: str, answers: Sequence[ExamAnswer], subject: str = "") -> Measurement:
    """Returns the mean score with its interval over independent groups; in an environment, its name is the tools'."""
    questions = [answer.question for answer in answers]
    scores = [answer.score for answer in answers]
    low, high = share_interval(scores, number_clusters([question.cluster for question in questions]))
    chance = sum(question.chance for question in questions) / len(questions)
    baseline = find_constant_baseline(questions)[1]
    mean = sum(scores) / len(scores)
    tools = split_evaluation_name(name)[0] if questions[0].task.startswith(ENVIRONMENT_PREFIX) else None
    facts = {**_describe_clusters(answers), "subject": subject}
    return Measurement(name, mean, low, high, len(answers), baseline, chance, tools, **facts)


def _describe_clusters(answers: Sequence[ExamAnswer]) -> dict[str, Any]:
    """Returns how many independent things the questions are made of, and their name, as fields of a measurement."""
    return count_clusters([answer.question for answer in answers])


def count_clusters(questions: Sequence[Question]) -> dict[str, Any]:
    """Returns {"clusters", "cluster_unit"}: how many independent groups the questions form, and what a group shares.

    Where they share nothing, the groups are the questions themselves.
    """
    return {
        "clusters": len({question.cluster for question in questions}),
        "cluster_unit": next((question.cluster_unit for question in questions if question.cluster_unit), "questions"),
    }


def compute_chatcore(measurements: Sequence[Measurement]) -> Measurement | None:
    """Returns the mean over the public tasks of (accuracy - chance) / (1 - chance); None if a task is missing.

    Chance is 1 / choices for letters and 0 for free text. n is the number of questions; the 95 % interval is made of
    those of the tasks, which are independent.
    """
    by_name = {m.name: m for m in measurements if not m.subject}
    if not set(PUBLIC_TASKS) <= set(by_name):
        return None
    tasks = [by_name[name] for name in PUBLIC_TASKS]
    parts = []
    for m in tasks:
        low, high = m.value if m.low is None else m.low, m.value if m.high is None else m.high
        value, low, high = (center_accuracy(accuracy, m.chance or 0.0) for accuracy in (m.value, low, high))
        parts.append((value, low, high))
    value, low, high = combine_intervals(parts)
    clusters = sum(m.clusters or m.n or 0 for m in tasks)
    return Measurement(
        "chatcore", value, low, high, sum(m.n or 0 for m in tasks), clusters=clusters, cluster_unit="independent"
    )


def center_accuracy(accuracy: float, chance: float) -> float:
    """Returns the accuracy on a scale where chance is 0 and a perfect score 1."""
    return (accuracy - chance) / (1 - chance)
