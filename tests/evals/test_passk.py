"""pass@k against enumeration, its interval, and samples that depend on question and index alone."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from fledgling.evals import passk
from fledgling.evals.chat import Exam, build_exams
from fledgling.evals.exams import TEMPERATURE, run_pass_at_k
from fledgling.tasks.task import Question


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
    questions = [Question("t", str(i), "") for i in range(3000)]
    one, five = passk.measure_pass_at_k("t", questions, right.tolist(), 8, [1, 5])
    assert (one.name, five.name, one.n) == ("t_pass@1", "t_pass@5", 3000)
    assert one.value == pytest.approx(right.mean() / 8)
    assert five.value == pytest.approx((1 - (1 - rates) ** 5).mean(), abs=0.01) and five.low < five.value < five.high
    half = 1.96 * np.std(right / 8) / 3000**0.5
    assert (one.high - one.low) / 2 == pytest.approx(half, rel=0.06)


def test_pass_at_k_is_over_wordings_and_has_a_width_where_every_question_is_solved():
    questions = [Question("t", str(i), "", {"wording": str(i // 4)}) for i in range(160)]
    right = [8 if i // 4 < 20 else 0 for i in range(160)]
    [shared] = passk.measure_pass_at_k("t", questions, right, 8, [1])
    [separate] = passk.measure_pass_at_k("t", [Question("t", str(i), "") for i in range(160)], right, 8, [1])
    assert (shared.n, shared.clusters, shared.cluster_unit) == (160, 40, "wordings")
    assert shared.high - shared.low > 1.7 * (separate.high - separate.low)
    [solved] = passk.measure_pass_at_k("t", questions, [8] * 160, 8, [1])
    assert solved.value == solved.high == 1.0 and solved.low < 0.93


def test_samples_depend_on_question_and_index_alone(engine, root):
    [exam] = build_exams(["gsm8k"], 4, data_dir=str(root))
    few = passk.sample_answers(engine, exam, 2, 0.8)
    more = passk.sample_answers(engine, exam, 3, 0.8)
    rest = passk.sample_answers(engine, Exam("x", exam.task, exam.questions[2:]), 2, 0.8, first_question=2)
    texts = [[answer.text for answer in answers] for answers in few]
    assert [[answer.text for answer in answers[:2]] for answers in more] == texts
    assert [[answer.text for answer in answers] for answers in rest] == texts[2:]
    assert len({text for row in texts for text in row}) > 4


def test_pass_at_k_at_another_temperature_is_another_figure():
    recorded = []
    session = SimpleNamespace(
        count_correct_samples=lambda *given: [1, 0],
        exams_dir=None,
        engine=SimpleNamespace(tool_name="none"),
        record=recorded.extend,
    )
    [exam] = build_exams(["identity"], 2)
    for temperature in (TEMPERATURE, 0.2):
        run_pass_at_k(session, exam, 1, [1], temperature)
    assert [m.name for m in recorded] == ["identity_test_pass@1", "identity_test_pass@1 at temperature 0.2"]
