"""Exams of chat tasks: letters by logits, groups, intervals and ChatCORE, against hand computation."""

import itertools

import numpy as np
import pytest
import torch

from fledgling.evals.chat import (
    Exam,
    ExamAnswer,
    answer_exams,
    build_exams,
    choose_letters,
    compute_chatcore,
    crop_prompt,
    encode_question,
    measure_exam,
)
from fledgling.evals.measurement import Measurement, wilson_interval
from fledgling.tasks import multiple_choice
from fledgling.tasks.task import DEV, PRACTICE, TEST, TRAIN, Question


def test_the_most_likely_of_the_offered_letters_is_chosen(engine):
    tokenizer = engine.tokenizer
    offered = [chosen for size in (2, 3) for chosen in itertools.combinations("ABCDE", size)]
    questions = [Question("x", f"Which {'very ' * n}one?", "A", {}, chosen) for n, chosen in enumerate(offered)]
    prompts = [encode_question(tokenizer, question) for question in questions]
    letters = choose_letters(engine, prompts, [question.choices for question in questions])
    for question, ids, letter in zip(questions, prompts, letters, strict=True):
        with torch.no_grad():
            hidden = engine.model(torch.tensor([ids]))
            logits = engine.model.compute_logits(hidden[:, -1])[0]
        scores = [float(logits[tokenizer.encode(choice)[0]]) for choice in question.choices]
        assert letter == question.choices[int(np.argmax(scores))]
    assert len(set(letters)) > 1


def test_letters_and_free_text_are_answered_in_order_with_progress(engine, root):
    exams = build_exams(["arc_easy", "gsm8k", "mmlu", "spelling"], 3, data_dir=str(root))
    reported = []
    answers = answer_exams(engine, exams, lambda *n: reported.append(n))
    measured = [m for exam, given in zip(exams, answers, strict=True) for m in measure_exam(exam.name, given)]
    seen = [(answer.question, answer.text, answer.score) for given in answers for answer in given]
    assert [m.name for m in measured] == ["arc_easy", "gsm8k", "mmlu", "spelling", "spelling_test"]
    assert [q for q, *_ in seen] == [q for exam in exams for q in exam.questions]
    assert all(text in q.choices for q, text, _ in seen if q.choices)
    assert reported[-1] == (15, 15) and [n for n, _ in reported] == sorted(n for n, _ in reported)
    assert [m.chance for m in measured] == [0.25, 0.0, 0.25, 0.0, 0.0]
    again = answer_exams(engine, [exams[2]])[0]  # alone or with other exams, the same answers
    assert [one.text for one in again] == [text for q, text, _ in seen if q.task == "mmlu"]


def test_a_prompt_longer_than_the_context_loses_its_beginning_and_is_counted(engine, root):
    assert crop_prompt([1, 2, 3, 4, 5, 6], 6) == ([1, 2, 3, 4, 5, 6], False)
    assert crop_prompt([1, 2, 3, 4, 5, 6], 4) == ([1, 2, 5, 6], True)
    [exam] = build_exams(["arc_easy"], 1, data_dir=str(root))
    long = Question("arc_easy", "word " * 400 + "Which?", "A", {}, ("A", "B"))
    for question in (long, Question("arc_easy", long.prompt, "A")):
        [[answer]] = answer_exams(engine, [Exam("x", exam.task, (question,))])
        assert answer.cropped
    assert (
        not answer_exams(engine, [exam])[0][0].cropped
        or len(encode_question(engine.tokenizer, exam.questions[0])) > 128
    )


def make_answers(right, wrong, subject=None, choices=("A", "B", "C", "D")):
    facts = {"subject": subject} if subject else {}
    scores = [1.0] * right + [0.0] * wrong
    return [ExamAnswer(Question("t", f"{subject} {i}?", "A", facts, choices), "A", s) for i, s in enumerate(scores)]


def test_subjects_have_their_own_accuracy_and_a_mean():
    measurements = {m.label: m for m in measure_exam("mmlu", make_answers(9, 1, "law") + make_answers(10, 30, "music"))}
    assert set(measurements) == {"mmlu", "mmlu_subjects", "mmlu/law", "mmlu/music"}
    assert measurements["mmlu"].value == 19 / 50 and (
        measurements["mmlu"].low,
        measurements["mmlu"].high,
    ) == wilson_interval(19, 50)
    assert measurements["mmlu/law"].value == 0.9 and measurements["mmlu_subjects"].value == pytest.approx(
        (0.9 + 0.25) / 2
    )
    assert measurements["mmlu_subjects"].low < 0.575 < measurements["mmlu_subjects"].high
    assert [m.name for m in measure_exam("mmlu", make_answers(9, 0, "law") + make_answers(10, 30, "music"))] == [
        "mmlu"
    ]  # nine questions are too few


def test_chatcore_is_the_published_mean_of_centered_accuracies():
    # The report card of nanochat's speed run after midtraining (October 2025) gives .0730.
    card = {"arc_easy": 0.3561, "arc_challenge": 0.2875, "mmlu": 0.3111, "gsm8k": 0.0250, "humaneval": 0.0671}
    chance = {"gsm8k": 0.0, "humaneval": 0.0}
    measurements = [
        Measurement(name, value, *wilson_interval(1000 * value, 1000), 1000, chance=chance.get(name, 0.25))
        for name, value in card.items()
    ]
    core = compute_chatcore(measurements)
    assert core.value == pytest.approx(0.0730, abs=5e-5) and core.n == 5000 and core.low < core.value < core.high
    assert compute_chatcore(measurements[1:]) is None


def test_questions_of_one_wording_are_one_cluster_and_the_measurement_says_how_many():
    answers = [
        ExamAnswer(Question("t", f"{w} {i}", "A", {"wording": str(w)}), "A", float(w < 40))
        for w in range(60)
        for i in range(3)
    ]
    [measured] = measure_exam("t_test", answers)
    assert (measured.value, measured.n, measured.clusters, measured.cluster_unit) == (2 / 3, 180, 60, "wordings")
    naive = wilson_interval(120, 180)
    assert measured.high - measured.low > 1.5 * (naive[1] - naive[0]), "three answers of one wording are one"


def test_questions_on_one_passage_or_with_one_prompt_are_one_cluster(tmp_path):
    passage = "This question refers to the following information. " + "A long text about a war. " * 8
    row = {"choices": ["a", "b"], "answer": 0, "subject": "history"}
    parse = multiple_choice.parse_row
    first, second, other = (
        parse("mmlu", {**row, "question": text}, "f:1").question
        for text in (f"{passage}\nWho won?", f"{passage}\nWho lost?", "Who won?")
    )
    assert first.cluster == second.cluster != other.cluster and first.cluster_unit == "passages"
    answers = [ExamAnswer(question, "A", 1.0) for question in (first, second, other, other)]
    assert measure_exam("mmlu", answers)[0].clusters == 2


def test_an_exam_of_a_skill_is_named_by_its_wordings_and_one_of_a_public_set_is_one(root):
    exams = build_exams(["stdlib", "identity"], {TRAIN: 9, TEST: 9, DEV: 4, PRACTICE: 9}, ["stdlib", "identity"])
    sizes = {exam.name: len(exam.questions) for exam in exams}
    assert sizes == {"stdlib_test": 9, "stdlib_dev": 4, "stdlib_practice": 9, "identity_test": 9, "identity_dev": 4}
    assert [exam.name for exam in build_exams(["spelling"], 3)] == ["spelling", "spelling_test"]
    assert [exam.name for exam in build_exams(["spelling"], {PRACTICE: 3})] == [], "in no recipe's RL here"
    [public] = build_exams(["arc_easy"], {TRAIN: 1, DEV: 2}, data_dir=str(root))
    assert len(public.questions) == 2 and build_exams(["arc_easy"], {PRACTICE: 2}, data_dir=str(root)) == []
