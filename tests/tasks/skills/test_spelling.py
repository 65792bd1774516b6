"""Spelling: scores compare letters."""

from fledgling.tasks.skills import spelling
from fledgling.tasks.task import Question


def test_spelling_scores_letters_not_separators():
    question = Question("spelling", "?", " a p p l e", {"word": "apple"})
    for right in (" a p p l e", "a-p-p-l-e", "A P P L E.", "apple"):
        assert spelling.score_spelling(question, right) == 1.0
    for wrong in (" a p l e", " a p p l e s", " a p p e l", ""):
        assert spelling.score_spelling(question, wrong) == 0.0
