"""Counting: the tally, its score, and the balance of answers."""

from fledgling.tasks.skills import counting
from fledgling.tasks.task import TEST, Question


def test_counting_tallies_and_scores_the_last_number():
    assert counting.write_step_metrics("strawberry", "r") == " s t r1 a w b e r2 r3 y:3"
    assert counting.write_step_metrics("cat", "x") == " c a t:0"
    question = Question("counting", "?", "3", {"word": "strawberry", "letter": "r"})
    assert counting.score_count(question, " s t r1 a w b e r2 r3 y:3") == 1.0
    assert counting.score_count(question, "3.") == 1.0
    assert counting.score_count(question, " s t r1 a w b e r2 r y:2") == 0.0
    assert counting.score_count(question, "three") == 0.0


def test_counting_is_balanced_in_training_and_evaluation():
    task = counting.make_task()
    trained = [task.get_train_conversation(i, 0)["messages"][-1]["content"].split(":")[1] for i in range(4_000)]
    evaluated = [q.answer for q in task.draw_exam(TEST, 200)]
    for answers in (trained, evaluated):
        share = {n: answers.count(n) / len(answers) for n in "0123"}
        assert max(share.values()) < 0.47
        assert share["0"] > 0.1 and share["2"] > 0.2 and share["3"] > 0.07  # words differ with the version of Python
