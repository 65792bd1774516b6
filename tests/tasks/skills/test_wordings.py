"""The wordings of the test: many, new, unlike each other, and every question in them has the right answer."""

import importlib
import itertools
import re

import pytest

from fledgling.tasks import SKILLS, load_task
from fledgling.tasks.skills import arithmetic, counting, identity, spelling, stdlib
from fledgling.tasks.skills.templates import expand_patterns, expand_surroundings, load_templates
from fledgling.tasks.task import DEV, PRACTICE, TEST, TRAIN, Question
from tests.tasks.skills.composition import is_composition, normalize_template

MODULES = {
    "arithmetic": arithmetic,
    "spelling": spelling,
    "counting": counting,
    "identity": identity,
    "stdlib": stdlib,
}
MIN_WORDINGS = 60
MAX_SHARED = 0.55  # of the pairs of adjacent words in the shorter of two wordings


@pytest.fixture(params=SKILLS)
def name(request):
    return request.param


def adjacent_words(template: str) -> frozenset[tuple[str, str]]:
    words = ["", *normalize_template(template).split(), ""]
    return frozenset(itertools.pairwise(words))


def find_near_duplicates(templates, others) -> list[tuple[str, str]]:
    """Returns the pairs of a template and another one that share too many pairs of adjacent words."""
    pairs = {template: adjacent_words(template) for template in (*templates, *others)}
    near = []
    for index, template in enumerate(templates):
        for other in (*templates[index + 1 :], *others):
            shared = len(pairs[template] & pairs[other])
            if shared > MAX_SHARED * min(len(pairs[template]), len(pairs[other])):
                near.append((template, other))
    return near


def test_the_test_has_many_wordings_and_a_small_exam_has_most_of_them(name):
    wordings = MODULES[name].list_templates(TEST)
    assert len(wordings) == len({normalize_template(wording) for wording in wordings}) >= MIN_WORDINGS
    questions = load_task(name).draw_exam(TEST, 200)
    assert len({question.cluster for question in questions}) == len(wordings)
    assert len({question.prompt for question in questions}) == len(questions)
    assert len({question.cluster for question in load_task(name).draw_exam(TEST, 50)}) == 50
    assert load_task(name).draw_exam(TEST, 50) == questions[:50], "a small exam is the beginning of a larger one"


def test_no_other_set_can_produce_a_wording_of_the_test_dev_or_practice_set(name):
    sets = {which: MODULES[name].list_templates(which) for which in (TRAIN, PRACTICE, DEV, TEST)}
    assert len(sets[DEV]) >= 20 and len(sets[PRACTICE]) >= 12 and len(sets[TRAIN]) >= 500
    normalized = {which: {normalize_template(core) for core in cores} for which, cores in sets.items()}
    for which, others in (
        (PRACTICE, (TRAIN,)),
        (DEV, (TRAIN, PRACTICE)),
        (TEST, (TRAIN, PRACTICE, DEV)),
    ):
        known = set().union(*(normalized[other] for other in others))
        assert [template for template in sets[which] if is_composition(template, known)] == []
    changed = f"Hi there, {sets[DEV][0].upper()}, thanks"
    assert is_composition(changed, normalized[DEV]), "decoration, case and punctuation hide nothing"


def test_no_wording_of_the_test_contains_a_long_training_core(name):
    # Harder than `is_composition`: whatever surrounds it, a core of four plain words or more gives it away.
    cores = {normalize_template(core) for core in MODULES[name].list_templates(TRAIN)}
    long = {core for core in cores if sum(not word.startswith("{") for word in core.split()) >= 4}
    for template in (*MODULES[name].list_templates(DEV), *MODULES[name].list_templates(TEST)):
        words = normalize_template(template).split()
        spans = {" ".join(words[i:j]) for i, j in itertools.combinations(range(len(words) + 1), 2)}
        assert not spans & long, template


def test_no_wording_of_the_test_is_nearly_another_one(name):
    sets = {which: MODULES[name].list_templates(which) for which in (PRACTICE, DEV, TEST)}
    assert find_near_duplicates(sets[TEST], (*sets[PRACTICE], *sets[DEV])) == []
    changed = re.sub(r"\w+$", "now", sets[DEV][0].rstrip("?.!:,"))
    assert find_near_duplicates([changed], sets[DEV]), "one changed word is found"


def test_no_trained_wording_is_nearly_one_of_the_test_or_dev_set(name):
    """But for what frames and phrases compose, whose few words are those of many a wording."""
    table = load_templates(name)
    if name == "identity":
        patterns = [pattern for kind in table.values() for pattern in kind[TRAIN]]
    elif name == "stdlib":
        patterns = [pattern for kind in table[TRAIN].values() for pattern in kind]
    else:
        varied = table[TRAIN]["varied"]
        patterns = [*itertools.chain(*varied.values())] if name == "arithmetic" else varied
    trained = {core: adjacent_words(core) for core in expand_patterns(*patterns)}
    for wording in (*MODULES[name].list_templates(DEV), *MODULES[name].list_templates(TEST)):
        pairs = adjacent_words(wording)
        near = [core for core, own in trained.items() if len(own & pairs) > MAX_SHARED * len(pairs)]
        assert near == [], wording


def test_a_wording_of_the_test_of_up_to_three_words_has_a_word_that_training_lacks():
    # The other skills have slots in all of theirs. Pairs of adjacent words say little of "Howdy!".
    trained = (*identity.list_templates(TRAIN), *expand_surroundings("openings"), *expand_surroundings("closings"))
    known = {word for text in trained for word in normalize_template(text).split()}
    short = [text for text in identity.list_templates(TEST) if len(normalize_template(text).split()) <= 3]
    assert short and [text for text in short if known.issuperset(normalize_template(text).split())] == []


def recompute_answer(question: Question) -> str:
    """Returns the answer from the facts, without the code that made the question."""
    facts = question.facts
    match question.task:
        case "arithmetic":
            a, b = facts["a"], facts["b"]
            return str({"+": sum((a, b)), "-": a - b, "*": sum([b] * a)}[facts["sign"]])
        case "spelling":
            return "".join(f" {letter}" for letter in facts["word"])
        case "counting":
            return str(len(re.findall(facts["letter"], facts["word"])))
        case "identity":
            return load_templates("identity")[facts["kind"]]["answer"]
    module, _, attribute = facts["name"].rpartition(".")
    if facts["kind"] == "module":
        return module
    documentation = getattr(importlib.import_module(module), attribute).__doc__
    return next(part for part in [question.answer] if part.rstrip(".") in documentation)


def test_every_question_of_every_exam_has_the_recomputed_answer_and_its_facts_in_the_prompt(name):
    exams = load_task(name).list_exams({TRAIN: 200, TEST: 200, DEV: 200, PRACTICE: 200})
    for exam, questions in exams:
        for question in questions:
            assert question.answer == recompute_answer(question), (exam, question)
            for key in {"arithmetic": ("a", "b"), "spelling": ("word",), "counting": ("word", "letter")}.get(name, ()):
                assert str(question.facts[key]) in question.prompt, (exam, question)
            if name == "stdlib":
                assert question.facts["name"].rpartition(".")[2] in question.prompt
            assert not set("{}[]") & set(question.prompt) and len(question.prompt) < 200


def test_a_subtraction_of_the_test_never_goes_below_zero():
    questions = load_task("arithmetic").draw_exam(TEST, 300)
    assert len(questions) == 300 and all(int(question.answer) >= 0 for question in questions)
