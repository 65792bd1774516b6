"""Arithmetic: scores compare numbers, and the expression is the one in the sentence."""

import random
import re

from fledgling.tasks.skills import arithmetic
from fledgling.tasks.task import DEV, PRACTICE, TEST, TRAIN, Question


def test_arithmetic_scores_numbers_not_spellings():
    question = Question("arithmetic", "?", "1234", {})
    for right in ("1234", "1,234", "1234.", "= 1234", "1234.0"):
        assert arithmetic.score_last_number(question, right) == 1.0
    for wrong in ("1235", "12345", "-1234", "123", "one", "", "1234 or 5"):
        assert arithmetic.score_last_number(question, wrong) == 0.0


def test_the_expression_is_the_one_in_the_sentence():
    compared = 0
    for which in (TRAIN, PRACTICE, DEV, TEST):
        for i in range(500):
            task = arithmetic.make_task()
            question = task.sample_question(random.Random(i), which, False, None)
            a, sign, b = (question.facts[k] for k in ("a", "sign", "b"))
            call, output, _ = task.write_reply(question)
            assert call["text"] == f"{a}{sign}{b}" and output["text"] == question.answer
            assert int(question.answer) == {"+": a + b, "-": a - b, "*": a * b}[sign]
            wording, numbers = question.facts["wording"], [int(n) for n in re.findall(r"\d+", question.prompt)]
            if len(numbers) == 2:  # no other digits
                in_order = sign != "-" or wording.index("{a}") < wording.index("{b}")
                assert numbers == ([a, b] if in_order else [b, a]), question.prompt
                compared += 1
    assert compared > 1500


def test_a_subtraction_keeps_its_order_and_a_story_begins_with_a_capital():
    draw = random.Random(0)
    questions = [arithmetic.make_task().sample_question(draw, TRAIN, False, None) for _ in range(4_000)]
    turned = [q for q in questions if q.facts["wording"].index("{b}") < q.facts["wording"].index("{a}")]
    assert {q.facts["sign"] for q in turned} == {"+", "-", "*"}
    begins = [q.prompt for q in questions if q.facts["wording"].startswith("{person}") and q.prompt[0].isalpha()]
    assert 0.7 < sum(prompt[0].isupper() for prompt in begins) / len(begins) < 1.0


def test_a_subtraction_goes_below_zero_in_composed_wordings_of_training_alone():
    """Nobody has 335 beans, which is fewer than 10."""
    families = arithmetic._train_templates()["-"]
    composed = {core for family in families[: arithmetic._COMPOSED] for cores in family for core in cores}
    below = {}
    for which, count in ((TRAIN, 6_000), (PRACTICE, 500), (DEV, 500), (TEST, 500)):
        draw = random.Random(1)
        questions = [arithmetic.make_task().sample_question(draw, which, False, None) for _ in range(count)]
        below[which] = [q.facts["wording"] for q in questions if int(q.answer) < 0]
    assert len(below[TRAIN]) > 20 and composed.issuperset(below[TRAIN])
    assert not below[PRACTICE] and not below[DEV] and not below[TEST]
