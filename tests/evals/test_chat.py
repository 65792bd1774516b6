"""Chat tasks: letters by logits, intervals, ChatCORE and pass@k, against hand computation and enumeration."""

import itertools

import numpy as np
import pytest
import torch

from fledgling.config import ModelConfig
from fledgling.evals import passk
from fledgling.evals.chat import (
    Exam,
    ExamAnswer,
    answer_exams,
    bootstrap_interval,
    build_exams,
    choose_letters,
    compute_chatcore,
    crop_prompt,
    encode_question,
    measure_exam,
    run_exams,
)
from fledgling.evals.measurement import Measurement, wilson_interval
from fledgling.infer.engine import Engine
from fledgling.model.transformer import Transformer
from fledgling.tasks.task import Question
from fledgling.text.tokenizer import Tokenizer
from tests.made_up_sets import made_up_sets

TEXTS = ["Which stone stands at place one? Respond only with the letter of the correct answer. A B C D"] * 20


@pytest.fixture(scope="module")
def engine():
    tokenizer = Tokenizer.train(iter(TEXTS), 320, max_digits=1, letter_tokens=True)
    model = Transformer(ModelConfig(320, 2, 32, 2, 2, 128))
    model.initialize(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    return Engine(model.eval(), tokenizer)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return made_up_sets(tmp_path_factory.mktemp("data"))


def test_a_letter_is_chosen_by_one_forward_among_those_offered(engine):
    tokenizer = engine.tokenizer
    offered = [chosen for size in (2, 3) for chosen in itertools.combinations("ABCDE", size)]
    questions = [Question("x", f"Which {'very ' * n}one?", "A", {}, chosen) for n, chosen in enumerate(offered)]
    prompts = [encode_question(tokenizer, question) for question in questions]
    found = choose_letters(engine, prompts, [question.choices for question in questions])
    for question, ids, letter in zip(questions, prompts, found, strict=True):
        with torch.no_grad():
            hidden = engine.model(torch.tensor([ids]))
            logits = engine.model.compute_logits(hidden[:, -1])[0]
        scores = [float(logits[tokenizer.encode(choice)[0]]) for choice in question.choices]
        assert letter == question.choices[int(np.argmax(scores))]
    assert len(set(found)) > 1


def test_both_kinds_of_questions_are_answered_in_order_and_told(engine, root):
    papers = build_exams(["arc_easy", "gsm8k", "mmlu", "spelling"], 3, data_dir=str(root))
    seen, told = [], []
    measured = run_exams(
        engine, papers, lambda q, text, score: seen.append((q, text, score)), lambda *n: told.append(n)
    )
    assert [m.name for m in measured] == ["arc_easy", "gsm8k", "mmlu", "spelling", "spelling_unseen"]
    assert [q for q, *_ in seen] == [q for paper in papers for q in paper.questions]
    assert all(text in q.choices for q, text, _ in seen if q.choices)
    assert told[-1] == (15, 15) and [n for n, _ in told] == sorted(n for n, _ in told)
    assert [m.chance for m in measured] == [0.25, 0.0, 0.25, 0.0, 0.0]
    again = answer_exams(engine, [papers[2]])[0]  # alone or in company, the same answers
    assert [one.text for one in again] == [text for q, text, _ in seen if q.task == "mmlu"]


def test_a_prompt_longer_than_the_context_loses_its_beginning_and_is_counted(engine, root):
    assert crop_prompt([1, 2, 3, 4, 5, 6], 6) == ([1, 2, 3, 4, 5, 6], False)
    assert crop_prompt([1, 2, 3, 4, 5, 6], 4) == ([1, 2, 5, 6], True)
    [paper] = build_exams(["arc_easy"], 1, data_dir=str(root))
    long = Question("arc_easy", "word " * 400 + "Which?", "A", {}, ("A", "B"))
    for question in (long, Question("arc_easy", long.prompt, "A")):
        [[given]] = answer_exams(engine, [Exam("x", paper.task, (question,))])
        assert given.cropped
    assert (
        not answer_exams(engine, [paper])[0][0].cropped
        or len(encode_question(engine.tokenizer, paper.questions[0])) > 128
    )


def given(right, wrong, subject=None, choices=("A", "B", "C", "D")):
    facts = {"subject": subject} if subject else {}
    question = Question("t", "?", "A", facts, choices)
    return [ExamAnswer(question, "A", 1.0)] * right + [ExamAnswer(question, "B", 0.0)] * wrong


def test_subjects_have_their_own_accuracy_and_a_mean():
    found = {m.name: m for m in measure_exam("mmlu", given(9, 1, "law") + given(10, 30, "music"))}
    assert set(found) == {"mmlu", "mmlu_subjects", "mmlu/law", "mmlu/music"}
    assert found["mmlu"].value == 19 / 50 and (found["mmlu"].low, found["mmlu"].high) == wilson_interval(19, 50)
    assert found["mmlu/law"].value == 0.9 and found["mmlu_subjects"].value == pytest.approx((0.9 + 0.25) / 2)
    assert found["mmlu_subjects"].low < 0.575 < found["mmlu_subjects"].high
    assert [m.name for m in measure_exam("mmlu", given(9, 0, "law") + given(10, 30, "music"))] == [
        "mmlu"
    ]  # nine say nothing


def test_chatcore_is_the_published_mean_of_centred_accuracies():
    # The report card of nanochat's speed run after midtraining (October 2025) gives .0730.
    card = {"arc_easy": 0.3561, "arc_challenge": 0.2875, "mmlu": 0.3111, "gsm8k": 0.0250, "humaneval": 0.0671}
    chance = {"gsm8k": 0.0, "humaneval": 0.0}
    found = [Measurement(name, value, n=1000, chance=chance.get(name, 0.25)) for name, value in card.items()]
    core = compute_chatcore(found)
    assert core.value == pytest.approx(0.0730, abs=5e-5) and core.n == 5000 and core.low < core.value < core.high
    assert compute_chatcore(found[1:]) is None


def test_the_bootstrap_is_as_wide_as_theory_says():
    low, high = bootstrap_interval([(0.4, 400, 0.0)])
    half = 1.96 * (0.4 * 0.6 / 400) ** 0.5
    assert (high - low) / 2 == pytest.approx(half, rel=0.06) and low == pytest.approx(0.4 - half, abs=0.01)
    narrow = bootstrap_interval([(0.4, 400, 0.0)] * 4)
    assert (narrow[1] - narrow[0]) == pytest.approx((high - low) / 2, rel=0.08)
    assert bootstrap_interval([(0.4, 400, 0.0)]) == (low, high)


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one():
    for n in range(1, 7):
        for c in range(n + 1):
            for k in range(1, n + 1):
                draws = [True] * c + [False] * (n - c)
                subsets = [any(chosen) for chosen in itertools.combinations(draws, k)]
                assert passk.pass_at_k(n, c, k) == pytest.approx(sum(subsets) / len(subsets))
    assert passk.pass_at_k(200, 1, 100) == 0.5


def test_pass_at_k_is_unbiased_and_its_interval_is_of_questions():
    rng = np.random.default_rng(0)
    rates = rng.random(3000)
    right = rng.binomial(8, rates)
    one, five = passk.measure_pass_at_k("t", right.tolist(), 8, [1, 5])
    assert (one.name, five.name, one.n) == ("t_pass@1", "t_pass@5", 3000)
    assert one.value == pytest.approx(right.mean() / 8)
    assert five.value == pytest.approx((1 - (1 - rates) ** 5).mean(), abs=0.01) and five.low < five.value < five.high
    half = 1.96 * np.std(right / 8) / 3000**0.5
    assert (one.high - one.low) / 2 == pytest.approx(half, rel=0.06)


def test_draws_depend_on_question_and_number_alone(engine, root):
    [paper] = build_exams(["gsm8k"], 4, data_dir=str(root))
    few = passk.sample_answers(engine, paper, 2, 0.8)
    more = passk.sample_answers(engine, paper, 3, 0.8)
    rest = passk.sample_answers(engine, Exam("x", paper.task, paper.questions[2:]), 2, 0.8, first_question=2)
    texts = [[one.text for one in answers] for answers in few]
    assert [[one.text for one in answers[:2]] for answers in more] == texts
    assert [[one.text for one in answers] for answers in rest] == texts[2:]
    assert len({text for row in texts for text in row}) > 4
