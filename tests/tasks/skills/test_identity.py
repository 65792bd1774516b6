"""Identity: each kind of question has one answer, and no template belongs to two kinds."""

import itertools

from fledgling.tasks import load_task
from fledgling.tasks.skills import identity
from fledgling.tasks.skills.templates import load_templates
from fledgling.tasks.task import DEV, PRACTICE, TEST, TRAIN, normalize_text
from tests.tasks.skills.composition import normalize_template


def test_identity_has_one_answer_a_kind():
    answers = {kind: table["answer"] for kind, table in load_templates("identity").items()}
    assert len({normalize_text(answer) for answer in answers.values()}) == len(answers) == 12
    kinds: dict[str, set[str]] = {}
    for which in (TRAIN, PRACTICE, DEV, TEST):
        templates_by_kind = identity._templates_by_kind(which)
        assert set(templates_by_kind) == set(answers) and all(templates_by_kind.values())
        for kind, patterns in templates_by_kind.items():
            for template in itertools.chain(*patterns):
                kinds.setdefault(normalize_template(template), set()).add(kind)
    assert [text for text, template_kinds in kinds.items() if len(template_kinds) > 1] == []
    task = load_task("identity")
    questions = task.draw_exam(TEST, 99)
    question = next(question for question in questions if question.facts["kind"] == "name")
    assert task.score(question, "my name is Fledgling") == 1.0
    assert task.score(question, answers["who"]) == 0.0
