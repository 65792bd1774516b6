"""Arithmetic: scores compare numbers, and the expression is the one in the sentence."""

import random

from fledgling.tasks.skills import arithmetic
from fledgling.tasks.task import DEV, PRACTICE, TEST, TRAIN, Question


def test_arithmetic_scores_numbers_not_spellings():
    question = Question("arithmetic", "?", "1234", {})
    for right in ("1234", "1,234", "1234.", "= 1234", "1234.0"):
        assert arithmetic.score_last_number(question, right) == 1.0
    for wrong in ("1235", "12345", "-1234", "123", "one", "", "1234 or 5"):
        assert arithmetic.score_last_number(question, wrong) == 0.0


def test_the_expression_is_the_one_in_the_sentence():
    for which in (TRAIN, PRACTICE, DEV, TEST):
        for i in range(500):
            task = arithmetic.make_task()
            question = task.sample_question(random.Random(i), which, False, None)
            a, sign, b = (question.facts[k] for k in ("a", "sign", "b"))
            call, output, _ = task.write_reply(question)
            assert call["text"] == f"{a}{sign}{b}" and output["text"] == question.answer
            assert int(question.answer) == {"+": a + b, "-": a - b, "*": a * b}[sign]
