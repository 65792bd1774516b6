"""What every task promises: purity, the held-out law, disjoint wordings, exact scores, replies that score."""

import json
import random

import pytest

from fledgling.config import UserError
from fledgling.tasks import SKILLS, load_source, load_task, make_mixture_example
from fledgling.tasks.skills import arithmetic, counting, identity, spelling, stdlib
from fledgling.tasks.skills.templates import (
    capitalize_first,
    decorate_template,
    expand_patterns,
    is_composition,
    normalize_template,
)
from fledgling.tasks.skills.words import harvest_words, list_real_words, sample_pseudoword
from fledgling.tasks.task import PRACTICE, TRAIN, UNSEEN, Question, find_constant_baseline, is_held_out, normalize_text
from fledgling.text.conversation import check_conversation

MODULES = {
    "arithmetic": arithmetic,
    "spelling": spelling,
    "counting": counting,
    "identity": identity,
    "stdlib": stdlib,
}
# The field's ordinary words for each skill: an unseen wording may use them because training has used them.
CONCEPTS = {
    "arithmetic": "sum plus add added adding total + difference minus take taken subtract remove product "
    "times multiply multiplication * how many which what number",
    "spelling": "spell spelled spelling letters letter word write list name separate type say",
    "counting": "how many often times count number letter letters find appear contains total",
    "identity": "who what name made trained human machine big small weights run learn internet wrong hello",
    "stdlib": "what does do purpose used for explain describe documentation module import which where defined",
}


def visible(conversation: dict) -> str:
    """Return what the user sees of the last reply: after the tool, when there is one."""
    content = conversation["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


@pytest.fixture(params=SKILLS)
def name(request):
    return request.param


def test_the_same_index_and_seed_give_the_same_example(name):
    task, again = load_task(name), MODULES[name].make_task()
    for i in range(200):
        assert task.get_train_example(i, 3) == again.get_train_example(i, 3)
        assert task.get_practice_question(i, 3) == again.get_practice_question(i, 3)
        assert task.question(i, True) == again.question(i, True)
    assert [task.get_train_example(i, 3) for i in range(50)] != [task.get_train_example(i, 4) for i in range(50)]


def test_the_hash_is_the_same_on_every_machine():
    assert [n for n in range(40) if is_held_out("pair", "+", n, 8)] == [2, 5, 9, 17, 21, 24, 35]


def test_no_held_out_word_or_pair_is_trained_or_practised():
    for i in range(20_000):
        python = arithmetic.make_task().get_train_example(i, 0)["messages"][-1]["content"][0]["text"]
        sign = next(s for s in "+*-" if s in python)
        a, b = sorted(map(int, python.split(sign)))
        assert not is_held_out("pair", sign, a, b)
        assert not is_held_out("word", visible(spelling.make_task().get_train_example(i, 0)).replace(" ", ""))
        letters = "".join(c for c in visible(counting.make_task().get_train_example(i, 0)) if c.isalpha())
        assert not is_held_out("word", letters)
        if i < 5_000:
            facts = arithmetic.make_task().get_practice_question(i, 0).facts
            assert not is_held_out("pair", facts["sign"], *sorted((facts["a"], facts["b"])))
            for other in (spelling, counting):
                assert not is_held_out("word", other.make_task().get_practice_question(i, 0).facts["word"])


@pytest.mark.parametrize("unseen", [False, True])
def test_every_evaluated_word_and_pair_is_held_out(unseen):
    for i in range(500):
        facts = arithmetic.make_task().get_eval_question(i, unseen).facts
        assert is_held_out("pair", facts["sign"], *sorted((facts["a"], facts["b"])))
        for other in (spelling, counting):
            assert is_held_out("word", other.make_task().get_eval_question(i, unseen).facts["word"])


def test_unseen_and_practice_wordings_cannot_come_out_of_another_set(name):
    sets = {which: MODULES[name].list_templates(which) for which in (TRAIN, PRACTICE, UNSEEN)}
    assert len(sets[UNSEEN]) >= 20 and len(sets[PRACTICE]) >= 12 and len(sets[TRAIN]) >= 500
    for which, others in ((UNSEEN, (TRAIN, PRACTICE)), (PRACTICE, (TRAIN,))):
        known = {normalize_template(core) for other in others for core in sets[other]}
        assert [t for t in sets[which] if is_composition(t, known)] == []


def test_no_longer_training_core_stands_inside_an_unseen_wording(name):
    # Harder than `composes`: whatever surrounds it, a core of four plain words or more gives it away.
    cores = [normalize_template(core) for core in MODULES[name].list_templates(TRAIN)]
    long = [core for core in cores if sum(not word.startswith("{") for word in core.split()) >= 4]
    texts = [f" {normalize_template(template)} " for template in MODULES[name].list_templates(UNSEEN)]
    assert [(core, text) for text in texts for core in long if f" {core} " in text] == []


def test_the_ordinary_words_of_a_skill_are_trained(name):
    trained = {word for core in MODULES[name].list_templates(TRAIN) for word in normalize_template(core).split()}
    assert set(CONCEPTS[name].split()) <= trained


def test_dressing_gives_what_composes_accepts():
    rng = random.Random(0)
    cores = spelling.list_templates(TRAIN)
    known = {normalize_template(core) for core in cores}
    for _ in range(300):
        dressed = decorate_template(rng.choice(cores), rng)
        assert is_composition(dressed, known), dressed
        assert not is_composition("my aunt collects " + dressed, known)


def test_the_reference_reply_scores_one_and_is_a_conversation(name):
    task = load_task(name)
    for i in range(300):
        for unseen in (False, True):
            question = task.get_eval_question(i, unseen)
            conversation = task.to_conversation(question)
            check_conversation(conversation)
            assert conversation["messages"][0]["content"] == question.prompt
            assert task.score(question, visible(conversation)) == 1.0
            assert task.score(question, "") == 0.0
        check_conversation(task.get_train_example(i, 0))


def test_no_slot_is_left_open_and_no_prompt_is_long(name):
    task = load_task(name)
    prompts = [task.get_train_example(i, 1)["messages"][0]["content"] for i in range(3_000)]
    prompts += [task.get_practice_question(i, 1).prompt for i in range(300)] + [
        task.get_eval_question(i, True).prompt for i in range(300)
    ]
    assert not [p for p in prompts if "{" in p or "}" in p or "[" in p or "  " in p]
    assert max(map(len, prompts)) < 200


def test_arithmetic_scores_numbers_not_spellings():
    question = Question("arithmetic", "?", "1234", {})
    for right in ("1234", "1,234", "1234.", "= 1234", "1234.0"):
        assert arithmetic.score_last_number(question, right) == 1.0
    for wrong in ("1235", "12345", "-1234", "123", "one", "", "1234 or 5"):
        assert arithmetic.score_last_number(question, wrong) == 0.0


def test_the_expression_is_what_the_sentence_asks():
    for which in (TRAIN, PRACTICE, UNSEEN):
        for i in range(2_000):
            task = arithmetic.make_task()
            question = task.sample_question(random.Random(i), which, False)
            a, sign, b = (question.facts[k] for k in ("a", "sign", "b"))
            call, output, _ = task.write_reply(question)
            assert call["text"] == f"{a}{sign}{b}" and output["text"] == question.answer
            assert int(question.answer) == {"+": a + b, "-": a - b, "*": a * b}[sign]


def test_spelling_scores_letters_not_separators():
    question = Question("spelling", "?", " a p p l e", {"word": "apple"})
    for right in (" a p p l e", "a-p-p-l-e", "A P P L E.", "apple"):
        assert spelling.score_spelling(question, right) == 1.0
    for wrong in (" a p l e", " a p p l e s", " a p p e l", ""):
        assert spelling.score_spelling(question, wrong) == 0.0


def test_counting_tallies_and_scores_the_last_number():
    assert counting.write_tally("strawberry", "r") == " s t r1 a w b e r2 r3 y:3"
    assert counting.write_tally("cat", "x") == " c a t:0"
    question = Question("counting", "?", "3", {"word": "strawberry", "letter": "r"})
    assert counting.score_count(question, " s t r1 a w b e r2 r3 y:3") == 1.0
    assert counting.score_count(question, "3.") == 1.0
    assert counting.score_count(question, " s t r1 a w b e r2 r y:2") == 0.0
    assert counting.score_count(question, "three") == 0.0


def test_counting_is_balanced_in_training_and_evaluation():
    task = counting.make_task()
    trained = [visible(task.get_train_example(i, 0)).split(":")[1] for i in range(4_000)]
    evaluated = [task.get_eval_question(i, True).answer for i in range(1_000)]
    for answers in (trained, evaluated):
        share = {n: answers.count(n) / len(answers) for n in "0123"}
        assert max(share.values()) < 0.45
        assert share["0"] > 0.1 and share["2"] > 0.25 and share["3"] > 0.1


def test_constant_answers_are_weak(name):
    questions = [load_task(name).get_eval_question(i, True) for i in range(400)]
    answer, share = find_constant_baseline(questions)
    assert share == load_task(name).find_constant_baseline(questions)[1] < (0.5 if name == "counting" else 0.15)
    assert sum(question.answer == answer for question in questions) == round(share * len(questions))
    assert find_constant_baseline([]) == ("", 0.0)


def test_identity_has_one_answer_a_kind():
    assert set(identity._TRAIN) == set(identity._PRACTICE) == set(identity._UNSEEN) == set(identity.ANSWERS)
    assert len({normalize_text(answer) for answer in identity.ANSWERS.values()}) == 12
    kinds: dict[str, set[str]] = {}
    for which in (TRAIN, PRACTICE, UNSEEN):
        for kind, templates in identity._templates_by_kind(which).items():
            for template in templates:
                kinds.setdefault(normalize_template(template), set()).add(kind)
    assert [text for text, found in kinds.items() if len(found) > 1] == []
    question = next(
        q for q in (load_task("identity").get_eval_question(i, True) for i in range(99)) if q.facts["kind"] == "name"
    )
    assert load_task("identity").score(question, "my name is Fledgling") == 1.0
    assert load_task("identity").score(question, identity.ANSWERS["who"]) == 0.0


def test_facts_are_the_docstrings_of_this_python():
    import math

    found = stdlib.collect_facts()
    assert len(found) == stdlib.NUM_FACTS == len({fact.description for fact in found})
    by_name = {f"{fact.module}.{fact.name}": fact for fact in found}
    assert by_name["math.sqrt"].description == math.sqrt.__doc__.strip().splitlines()[-1].strip()
    assert all(len(fact.description) <= stdlib.MAX_ANSWER_CHARACTERS and fact.description.isascii() for fact in found)
    assert stdlib.collect_facts(10) == found[:10]
    with pytest.raises(UserError, match="lower the number"):
        stdlib.collect_facts(100_000)


def test_a_module_is_asked_for_only_where_one_has_the_name():
    only = {f"{fact.module}.{fact.name}" for fact in stdlib.collect_facts() if fact.has_unique_name}
    for i in range(2_000):
        question = load_task("stdlib").get_eval_question(i, True)
        assert question.facts["kind"] == "does" or question.facts["name"] in only


def test_the_harvest_is_large_sorted_and_clean():
    words = harvest_words()
    assert len(words) >= 5_000 and list(words) == sorted(set(words))
    assert all(word.isascii() and word.islower() and word.isalpha() and 3 <= len(word) <= 12 for word in words)
    assert not set(list_real_words(True, 12)) & set(list_real_words(False, 12))
    assert 0.07 < len(list_real_words(True, 12)) / len(words) < 0.13
    rng = random.Random(1)
    letters = "".join(sample_pseudoword(rng, 10) for _ in range(2_000))
    assert min(letters.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz") > 50


def test_patterns_expand_in_order_and_nest():
    assert expand_patterns("[a|b] c", "x[|y]") == ("a c", "b c", "x", "xy")
    assert expand_patterns("[a|[b|c] d]") == ("a", "b d", "c d")
    assert capitalize_first("{a} and") == "{a} and" and capitalize_first("what") == "What"


def test_a_mixture_follows_its_weights_and_joins_a_few():
    weights = {"arithmetic": 3.0, "spelling": 1.0, "identity": 0.0}
    examples = [make_mixture_example(weights, i, 5) for i in range(3_000)]
    assert examples[:50] == [make_mixture_example(dict(reversed(weights.items())), i, 5) for i in range(50)]
    single = [e for e in examples if len(e["messages"]) == 2]
    tools = sum(isinstance(e["messages"][1]["content"], list) for e in single)
    assert 0.70 < tools / len(single) < 0.80
    assert 0.04 < 1 - len(single) / len(examples) < 0.10
    for example in examples[:300]:
        check_conversation(example)


def test_unknown_names_and_empty_mixtures_are_told_plainly():
    with pytest.raises(UserError, match='did you mean "spelling"'):
        load_task("speling")
    with pytest.raises(UserError, match="mixture of tasks is empty"):
        make_mixture_example({"spelling": 0.0}, 0, 0)


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8")
    return path


def talk(*roles):
    return {"messages": [{"role": role, "content": f"{role} {n}"} for n, role in enumerate(roles)]}


def test_own_conversations_come_once_an_epoch(tmp_path):
    lines = [talk("user", "assistant") | {"id": n} for n in range(5)]
    for n, line in enumerate(lines):
        line["messages"][0]["content"] = f"question {n}"
    path = write(tmp_path / "mine.jsonl", *lines, "", talk("system", "user", "assistant"))
    mine = load_source(f"chat:{path}")
    epoch = [mine.get_train_example(i, 1) for i in range(6)]
    assert len({json.dumps(c) for c in epoch}) == 6
    assert any(epoch != [mine.get_train_example(i, 1) for i in range(6 * n, 6 * n + 6)] for n in (1, 2, 3))
    for conversation in epoch:
        check_conversation(conversation)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{not json", "not JSON"),
        ([1], "a list, expected {"),
        ({"conversation": []}, 'no list "messages"'),
        (talk("user", "user"), "the turns are user, user"),
        (talk("assistant", "user"), "the turns are assistant, user"),
        (talk("user"), "the turns are user"),
        ({"messages": [{"role": "bot", "content": "x"}]}, '"role" must be one of'),
        ({"messages": [{"role": "user", "content": " "}]}, '"content" must be text'),
        ({"messages": [{"role": "user", "content": 3}]}, '"content" must be text'),
        ({"messages": []}, "the turns are none"),
    ],
)
def test_a_bad_line_is_one_message_with_file_and_line(tmp_path, line, problem):
    path = write(tmp_path / "mine.jsonl", talk("user", "assistant"), line)
    with pytest.raises(UserError) as error:
        load_source(f"chat:{path}")
    message = str(error.value)
    assert f"{path}:2: " in message and problem in message and "expected {" in message and "\n" not in message


def test_a_file_that_is_missing_empty_or_not_utf8_is_named(tmp_path):
    for path, problem in (
        (tmp_path / "none.jsonl", "cannot read"),
        (write(tmp_path / "empty.jsonl", ""), "holds no conversation"),
    ):
        with pytest.raises(UserError, match=problem):
            load_source(f"chat:{path}")
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        load_source(f"chat:{tmp_path / 'latin.jsonl'}")
