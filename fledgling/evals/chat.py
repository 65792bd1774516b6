"""Chat tasks: questions put to the model as a user would, answered, and scored by their task.

The one idea: two ways to answer, and the question says which. Where the prompt offers letters, one forward
gives the logits after it and the likeliest of the offered letters is the answer; so a model is scored on what
it knows and not on whether it obeys. Where the answer is written freely, it is generated, greedily, by the engine,
with its tools.

All questions of all exams share groups, sorted by length. A group is what one rank answers and what is kept of an exam
that is stopped; it depends on the questions alone, so any number of ranks gives the answers of one.

A prompt longer than the model's context loses words from its beginning; how many did is told.

What it is not: likelihood of whole choices after few-shot examples; that is `fledgling eval core`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fledgling.evals.likelihood import ContinuationRow, Scorer
from fledgling.evals.measurement import Measurement, wilson_interval
from fledgling.infer.detokenizer import decode_final_text
from fledgling.infer.engine import Engine
from fledgling.infer.sampling import SamplingParams
from fledgling.runtime.world import World
from fledgling.tasks import PUBLIC_TASKS, load_task
from fledgling.tasks.task import Question, Task, find_constant_baseline
from fledgling.text.conversation import render_prompt

BOOTSTRAP_SAMPLES = 2000  # of the bootstrap
LETTER_BATCH_SIZE = 1024  # letters of so many questions are scored by all ranks together
GROUP_SIZE = {"cpu": 64, "cuda": 256}  # questions whose answers one rank writes together
MIN_SUBJECT_QUESTIONS = 10  # questions of a subject, below which its accuracy says nothing

ProgressCallback = Callable[[int, int], None]  # (questions answered, questions in all)
AnswersCallback = Callable[[Mapping[int, "ExamAnswer"]], None]


@dataclass(frozen=True)
class Exam:
    """A named list of questions of one task."""

    name: str
    task: Task
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class ExamAnswer:
    """A question, what the model finally said to it, the score, and whether the prompt had to be cut.

    Where it was drawn (passk.py) also how many tokens were said, and the log-probability of those the model chose.
    """

    question: Question
    text: str
    score: float
    cropped: bool = False
    num_tokens: int = 0
    logprob: float = 0.0


def build_exams(
    tasks: Sequence[str], count: int, practised_tasks: Sequence[str] = (), data_dir: str | None = None
) -> list[Exam]:
    """The exams of some tasks, each of at most `count` questions; see `Task.exams`.

    Tasks in `practised` are examined in the wordings of practice too. Raises UserError for a task whose files
    are missing or damaged.
    """
    made = []
    for name in tasks:
        task = load_task(name, data_dir)
        made += [
            Exam(label, task, questions)
            for label, questions in task.list_exam_questions(count, name in practised_tasks)
        ]
    return made


def run_exams(
    engine: Engine,
    exams: Sequence[Exam],
    log: Callable[[Question, str, float], None] | None = None,
    progress: ProgressCallback | None = None,
    world: World | None = None,
) -> list[Measurement]:
    """The accuracy of each exam, with what `measure` adds. log(question, answer, score) sees every answer."""
    answers = answer_exams(engine, exams, progress, world)
    if log:
        for one in (one for paper in answers for one in paper):
            log(one.question, one.text, one.score)
    return [m for paper, given in zip(exams, answers, strict=True) for m in measure_exam(paper.name, given)]


def answer_exams(
    engine: Engine,
    exams: Sequence[Exam],
    progress: ProgressCallback | None = None,
    world: World | None = None,
    known_answers: Mapping[int, ExamAnswer] | None = None,
    on_answers: AnswersCallback | None = None,
) -> list[list[ExamAnswer]]:
    """The answers to every exam's questions, in order, the same on all ranks, which must all call it.

    known: answers that are there already, by their place among all questions; groups without a gap are not asked again.
    keep(answers by place) is called on every rank as groups are answered.
    """
    world = world or World(0, 1, 0, engine.device)
    asked = [(paper.task, question) for paper in exams for question in paper.questions]
    prompts, cropped = [], []
    for task, question in asked:
        room = 1 if question.choices else min(task.max_new_tokens, engine.context // 2)
        ids, cut = crop_prompt(encode_question(engine.tokenizer, question), engine.context - room)
        prompts.append(ids)
        cropped.append(cut)
    given = dict(known_answers or {})
    for longest, group_round in schedule_groups(asked, list(map(len, prompts)), given, engine.device.type, world.size):
        done = len(given)
        told = (lambda now, _, done=done: progress(done + now, len(asked))) if progress else None
        mine = (
            group_round if longest == 0 else group_round[world.rank : world.rank + 1]
        )  # letters: all ranks, a part each
        found: dict[int, ExamAnswer] = {}
        for group in mine:
            here = [prompts[i] for i in group]
            if longest:
                texts = _generate_answers(engine, here, longest, told)
            else:
                texts = choose_letters(engine, here, [asked[i][1].choices for i in group], told, world)
            scores = _score_answers([asked[i] for i in group], texts)
            for i, text, score in zip(group, texts, scores, strict=True):
                found[i] = ExamAnswer(asked[i][1], text, score, cropped[i])
        new = {
            place: one
            for part in (world.all_gather_object(found) if longest else [found])
            for place, one in part.items()
        }
        given |= new
        if on_answers:
            on_answers(new)
        if progress:
            progress(len(given), len(asked))
    every = iter(given[i] for i in range(len(asked)))
    return [[next(every) for _ in paper.questions] for paper in exams]


def schedule_groups(
    questions: Sequence[tuple[Task, Question]],
    lengths: Sequence[int],
    answered: Container[int],
    device: str,
    world_size: int,
) -> Iterator[tuple[int, list[list[int]]]]:
    """What is answered at a time: (tokens of an answer, 0 for letters; groups of places, at most one a rank).

    Of what is written at most the same length, questions with prompts of about the same length are together.
    """
    longest = [0 if question.choices else task.max_new_tokens for task, question in questions]
    for most in sorted(set(longest)):
        places = [place for place, own in enumerate(longest) if own == most]
        together = GROUP_SIZE.get(device, 256) if most else LETTER_BATCH_SIZE
        places.sort(key=lambda place: lengths[place] if most else place)
        groups = [places[at : at + together] for at in range(0, len(places), together)]
        groups = [group for group in groups if not all(place in answered for place in group)]
        step = world_size if most else 1
        for at in range(0, len(groups), step):
            yield most, groups[at : at + step]


def _score_answers(asked: Sequence[tuple[Task, Question]], texts: Sequence[str]) -> list[float]:
    """The score of each answer, those of a task in one call."""
    scores = [0.0] * len(asked)
    for task in {id(task): task for task, _ in asked}.values():
        mine = [i for i, (own, _) in enumerate(asked) if own is task]
        for i, score in zip(mine, task.score_batch([(asked[i][1], texts[i]) for i in mine]), strict=True):
            scores[i] = score
    return scores


def _generate_answers(
    engine: Engine, prompts: list[list[int]], max_new_tokens: int, progress: ProgressCallback | None
) -> list[str]:
    sampling = SamplingParams(temperature=0.0, max_new_tokens=max_new_tokens)
    completions = engine.generate(prompts, sampling, progress=progress)
    return [decode_final_text(engine.tokenizer, completion.tokens) for completion in completions]


def choose_letters(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    choices: Sequence[Sequence[str]],
    progress: ProgressCallback | None = None,
    world: World | None = None,
) -> list[str]:
    """The likeliest of each question's letters as the reply's first token; ties go to the first letter.

    A letter is one token in every byte-level vocabulary.
    """
    ids = {letter: engine.tokenizer.encode(letter) for letter in sorted({one for row in choices for one in row})}
    assert all(len(tokens) == 1 for tokens in ids.values()), f"a letter of several tokens: {ids}"
    scorer, found = Scorer(engine, world), []
    for start in range(0, len(prompts), LETTER_BATCH_SIZE):
        part = slice(start, start + LETTER_BATCH_SIZE)
        items = [
            [ContinuationRow(np.array([*prompt, *ids[letter]], np.int32), len(prompt)) for letter in offered]
            for prompt, offered in zip(prompts[part], choices[part], strict=True)
        ]
        for offered, scores in zip(choices[part], scorer.score(items), strict=True):
            found.append(offered[int(np.argmax([score.logprob for score in scores]))])
        if progress:
            progress(len(found), len(prompts))
    return found


def crop_prompt(prompt: list[int], max_tokens: int) -> tuple[list[int], bool]:
    """A prompt in at most `room` tokens, and whether it was cut: bos and the turn's begin stay, the first words go."""
    return (prompt, False) if len(prompt) <= max_tokens else ([*prompt[:2], *prompt[2 - max_tokens :]], True)


def encode_question(tokenizer, question: Question) -> list[int]:
    """The question as a user's turn, ending where the assistant begins."""
    return render_prompt(tokenizer, {"messages": [{"role": "user", "content": question.prompt}]})


def measure_exam(name: str, answers: Sequence[ExamAnswer]) -> list[Measurement]:
    """The exam's accuracy with its Wilson interval, the best constant answer and chance.

    Questions of several subjects, at least `FEW` of each, give the accuracy of each subject too, NAME/SUBJECT, and
    their mean, NAME_subjects, with a bootstrap interval over the questions of each.
    """
    found = [_measure_accuracy(name, answers)]
    subjects: dict[str, list[ExamAnswer]] = {}
    for one in answers:
        if "subject" in one.question.facts:
            subjects.setdefault(one.question.facts["subject"], []).append(one)
    if len(subjects) > 1 and min(map(len, subjects.values())) >= MIN_SUBJECT_QUESTIONS:
        parts = [_measure_accuracy(f"{name}/{subject}", subjects[subject]) for subject in sorted(subjects)]
        low, high = bootstrap_interval([(p.value, p.n, 0.0) for p in parts])
        mean = float(np.mean([p.value for p in parts]))
        found += [Measurement(f"{name}_subjects", mean, low, high, len(answers)), *parts]
    return found


def _measure_accuracy(name: str, answers: Sequence[ExamAnswer]) -> Measurement:
    right, n = sum(one.score for one in answers), len(answers)
    questions = [one.question for one in answers]
    chance = sum(question.chance for question in questions) / n
    return Measurement(name, right / n, *wilson_interval(right, n), n, find_constant_baseline(questions)[1], chance)


def compute_chatcore(measurements: Sequence[Measurement]) -> Measurement | None:
    """The mean over the public tasks of centred accuracy, (accuracy - chance) / (1 - chance); None if one is missing.

    Chance is 1 / choices for letters and 0 for what is written. n is the number of questions; the 95 % interval is that
    of a bootstrap over the questions of each task.
    """
    named = {m.name: m for m in measurements}
    if not set(PUBLIC_TASKS) <= set(named):
        return None
    parts = [named[name] for name in PUBLIC_TASKS]
    low, high = bootstrap_interval([(p.value, p.n, p.chance or 0.0) for p in parts])
    value = float(np.mean([center_accuracy(p.value, p.chance or 0.0) for p in parts]))
    return Measurement("chatcore", value, low, high, sum(p.n for p in parts))


def center_accuracy(accuracy: float | np.ndarray, chance: float) -> float | np.ndarray:
    """Accuracy on a scale where chance is 0 and perfection 1."""
    return (accuracy - chance) / (1 - chance)


def bootstrap_interval(accuracies: Sequence[tuple[float, int, float]], seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of centred accuracies, each given as (accuracy, n, chance).

    Drawing n answers of 0 or 1 with replacement gives a binomial number of ones, so that is what is drawn. The
    ends are percentiles of `DRAWS` draws; drawn again with another seed they move by about 1 % of the width.
    """
    rng = np.random.default_rng(seed)
    draws = [
        center_accuracy(rng.binomial(n, min(1.0, value), BOOTSTRAP_SAMPLES) / n, chance)
        for value, n, chance in accuracies
    ]
    low, high = np.percentile(np.mean(draws, axis=0), [2.5, 97.5])
    return float(low), float(high)
