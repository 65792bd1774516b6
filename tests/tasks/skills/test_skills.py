"""Properties of every skill: purity, held-out words and numbers, disjoint templates, replies that score."""

import hashlib

import pytest

from fledgling.tasks import SKILLS, load_task
from fledgling.tasks.skills import WORDINGS, arithmetic, counting, spelling
from fledgling.tasks.task import DEV, PRACTICE, TEST, TRAIN, find_constant_baseline, is_held_out
from fledgling.text.conversation import check_conversation
from tests.tasks.skills.composition import normalize_template
from tests.tasks.skills.test_wordings import MODULES

CONCEPTS = {
    "arithmetic": "sum plus add added adding total + difference minus take taken subtract remove product "
    "times multiply multiplication * how many which what number",
    "spelling": "spell spelled spelling letters letter word write list name separate type say",
    "counting": "how many often times count number letter letters find appear contains total",
    "identity": "who what name made trained human machine big small weights run learn internet wrong hello",
    "stdlib": "what does do purpose used for explain describe documentation module import which where defined",
}


def visible_reply(conversation: dict) -> str:
    """Return what the user sees of the last reply: after the tool, when there is one."""
    content = conversation["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


@pytest.fixture(params=SKILLS)
def name(request):
    return request.param


def test_the_same_index_and_seed_give_the_same_example(name):
    task, again = load_task(name), MODULES[name].make_task()
    for i in range(200):
        assert task.get_train_conversation(i, 3) == again.get_train_conversation(i, 3)
        assert task.get_practice_question(i, 3) == again.get_practice_question(i, 3)
    assert task.draw_exam(TEST, 80) == again.draw_exam(TEST, 80)
    assert [task.get_train_conversation(i, 3) for i in range(50)] != [
        task.get_train_conversation(i, 4) for i in range(50)
    ]


def test_no_held_out_word_or_pair_is_trained_or_practised():
    for i in range(20_000):
        python = arithmetic.make_task().get_train_conversation(i, 0)["messages"][-1]["content"][0]["text"]
        sign = next(s for s in "+*-" if s in python)
        a, b = sorted(map(int, python.split(sign)))
        assert not is_held_out("pair", sign, a, b)
        assert not is_held_out(
            "word", visible_reply(spelling.make_task().get_train_conversation(i, 0)).replace(" ", "")
        )
        letters = "".join(c for c in visible_reply(counting.make_task().get_train_conversation(i, 0)) if c.isalpha())
        assert not is_held_out("word", letters)
        if i < 5_000:
            facts = arithmetic.make_task().get_practice_question(i, 0).facts
            assert not is_held_out("pair", facts["sign"], *sorted((facts["a"], facts["b"])))
            for other in (spelling, counting):
                assert not is_held_out("word", other.make_task().get_practice_question(i, 0).facts["word"])


@pytest.mark.parametrize("wordings", [TRAIN, PRACTICE, DEV, TEST])
def test_every_evaluated_word_and_pair_is_held_out(wordings):
    for question in load_task("arithmetic").draw_exam(wordings, 200):
        facts = question.facts
        assert is_held_out("pair", facts["sign"], *sorted((facts["a"], facts["b"])))
    for name in ("spelling", "counting"):
        assert all(is_held_out("word", q.facts["word"]) for q in load_task(name).draw_exam(wordings, 200))


def test_the_ordinary_words_of_a_skill_are_trained(name):
    trained = {word for core in MODULES[name].list_templates(TRAIN) for word in normalize_template(core).split()}
    assert set(CONCEPTS[name].split()) <= trained


def test_wordings_are_changed_together_with_their_date():
    """A failure asks whether scores of runs before and after can be compared; the date says no, only the digest yes."""
    parts = [
        core for module in MODULES.values() for which in (TRAIN, DEV, TEST) for core in module.list_templates(which)
    ]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    assert (WORDINGS, digest) == ("2026-11-30 4", "c3e43ccdf30ed5e6")


def test_the_reference_reply_scores_one_and_is_a_conversation(name):
    task = load_task(name)
    for i, questions in enumerate(zip(task.draw_exam(TRAIN, 100), task.draw_exam(TEST, 100), strict=False)):
        for question in questions:
            conversation = task.to_conversation(question)
            check_conversation(conversation)
            assert conversation["messages"][0]["content"] == question.prompt
            assert task.score(question, visible_reply(conversation)) == 1.0
            assert task.score(question, "") == 0.0
        check_conversation(task.get_train_conversation(i, 0))


def test_no_slot_is_left_open_and_no_prompt_is_long(name):
    task = load_task(name)
    prompts = [task.get_train_conversation(i, 1)["messages"][0]["content"] for i in range(3_000)]
    prompts += [task.get_practice_question(i, 1).prompt for i in range(300)]
    prompts += [q.prompt for wordings in (DEV, TEST) for q in task.draw_exam(wordings, 300)]
    assert not [p for p in prompts if "{" in p or "}" in p or "[" in p or "  " in p]
    assert max(map(len, prompts)) < 200


def test_constant_answers_are_weak(name):
    questions = load_task(name).draw_exam(TEST, 200)
    answer, share = find_constant_baseline(questions)
    assert share < (0.5 if name == "counting" else 0.15)
    assert sum(question.answer == answer for question in questions) == round(share * len(questions))
