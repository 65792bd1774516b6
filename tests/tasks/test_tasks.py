"""What every task promises: purity, the held-out law, disjoint wordings, exact scores, replies that score."""

import json
import random

import pytest

from fledgling.config import UserError
from fledgling.tasks import NAMES, get, mixture_example, source
from fledgling.tasks.skills import arithmetic, counting, identity, spelling, stdlib
from fledgling.tasks.skills.wording import capital, composes, dress, expand, plain_words
from fledgling.tasks.skills.words import harvest, made_up_word, real_words
from fledgling.tasks.task import PRACTICE, TRAIN, UNSEEN, Question, constant_baseline, held_out, normalise
from fledgling.text.conversation import check

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


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_the_same_index_and_seed_give_the_same_example(name):
    task, again = get(name), MODULES[name].task()
    for i in range(200):
        assert task.train(i, 3) == again.train(i, 3)
        assert task.practice(i, 3) == again.practice(i, 3)
        assert task.question(i, True) == again.question(i, True)
    assert [task.train(i, 3) for i in range(50)] != [task.train(i, 4) for i in range(50)]


def test_the_hash_is_the_same_on_every_machine():
    assert [n for n in range(40) if held_out("pair", "+", n, 8)] == [2, 5, 9, 17, 21, 24, 35]


def test_no_held_out_word_or_pair_is_trained_or_practised():
    for i in range(20_000):
        python = arithmetic.task().train(i, 0)["messages"][-1]["content"][0]["text"]
        sign = next(s for s in "+*-" if s in python)
        a, b = sorted(map(int, python.split(sign)))
        assert not held_out("pair", sign, a, b)
        assert not held_out("word", visible(spelling.task().train(i, 0)).replace(" ", ""))
        letters = "".join(c for c in visible(counting.task().train(i, 0)) if c.isalpha())
        assert not held_out("word", letters)
        if i < 5_000:
            facts = arithmetic.task().practice(i, 0).facts
            assert not held_out("pair", facts["sign"], *sorted((facts["a"], facts["b"])))
            for other in (spelling, counting):
                assert not held_out("word", other.task().practice(i, 0).facts["word"])


@pytest.mark.parametrize("unseen", [False, True])
def test_every_evaluated_word_and_pair_is_held_out(unseen):
    for i in range(500):
        facts = arithmetic.task().question(i, unseen).facts
        assert held_out("pair", facts["sign"], *sorted((facts["a"], facts["b"])))
        for other in (spelling, counting):
            assert held_out("word", other.task().question(i, unseen).facts["word"])


def test_unseen_and_practice_wordings_cannot_come_out_of_another_set(name):
    sets = {which: MODULES[name].wordings(which) for which in (TRAIN, PRACTICE, UNSEEN)}
    assert len(sets[UNSEEN]) >= 20 and len(sets[PRACTICE]) >= 12 and len(sets[TRAIN]) >= 500
    for which, others in ((UNSEEN, (TRAIN, PRACTICE)), (PRACTICE, (TRAIN,))):
        known = {plain_words(core) for other in others for core in sets[other]}
        assert [t for t in sets[which] if composes(t, known)] == []


def test_no_longer_training_core_stands_inside_an_unseen_wording(name):
    # Harder than `composes`: whatever surrounds it, a core of four plain words or more gives it away.
    cores = [plain_words(core) for core in MODULES[name].wordings(TRAIN)]
    long = [core for core in cores if sum(not word.startswith("{") for word in core.split()) >= 4]
    texts = [f" {plain_words(template)} " for template in MODULES[name].wordings(UNSEEN)]
    assert [(core, text) for text in texts for core in long if f" {core} " in text] == []


def test_the_ordinary_words_of_a_skill_are_trained(name):
    trained = {word for core in MODULES[name].wordings(TRAIN) for word in plain_words(core).split()}
    assert set(CONCEPTS[name].split()) <= trained


def test_dressing_gives_what_composes_accepts():
    rng = random.Random(0)
    cores = spelling.wordings(TRAIN)
    known = {plain_words(core) for core in cores}
    for _ in range(300):
        dressed = dress(rng.choice(cores), rng)
        assert composes(dressed, known), dressed
        assert not composes("my aunt collects " + dressed, known)


def test_the_reference_reply_scores_one_and_is_a_conversation(name):
    task = get(name)
    for i in range(300):
        for unseen in (False, True):
            question = task.question(i, unseen)
            conversation = task.conversation(question)
            check(conversation)
            assert conversation["messages"][0]["content"] == question.prompt
            assert task.score(question, visible(conversation)) == 1.0
            assert task.score(question, "") == 0.0
        check(task.train(i, 0))


def test_no_slot_is_left_open_and_no_prompt_is_long(name):
    task = get(name)
    prompts = [task.train(i, 1)["messages"][0]["content"] for i in range(3_000)]
    prompts += [task.practice(i, 1).prompt for i in range(300)] + [task.question(i, True).prompt for i in range(300)]
    assert not [p for p in prompts if "{" in p or "}" in p or "[" in p or "  " in p]
    assert max(map(len, prompts)) < 200


def test_arithmetic_scores_numbers_not_spellings():
    question = Question("arithmetic", "?", "1234", {})
    for right in ("1234", "1,234", "1234.", "= 1234", "1234.0"):
        assert arithmetic.score(question, right) == 1.0
    for wrong in ("1235", "12345", "-1234", "123", "one", "", "1234 or 5"):
        assert arithmetic.score(question, wrong) == 0.0


def test_the_expression_is_what_the_sentence_asks():
    for which in (TRAIN, PRACTICE, UNSEEN):
        for i in range(2_000):
            task = arithmetic.task()
            question = task.draw(random.Random(i), which, False)
            a, sign, b = (question.facts[k] for k in ("a", "sign", "b"))
            call, output, _ = task.reply(question)
            assert call["text"] == f"{a}{sign}{b}" and output["text"] == question.answer
            assert int(question.answer) == {"+": a + b, "-": a - b, "*": a * b}[sign]


def test_spelling_scores_letters_not_separators():
    question = Question("spelling", "?", " a p p l e", {"word": "apple"})
    for right in (" a p p l e", "a-p-p-l-e", "A P P L E.", "apple"):
        assert spelling.score(question, right) == 1.0
    for wrong in (" a p l e", " a p p l e s", " a p p e l", ""):
        assert spelling.score(question, wrong) == 0.0


def test_counting_tallies_and_scores_the_last_number():
    assert counting.tally("strawberry", "r") == " s t r1 a w b e r2 r3 y:3"
    assert counting.tally("cat", "x") == " c a t:0"
    question = Question("counting", "?", "3", {"word": "strawberry", "letter": "r"})
    assert counting.score(question, " s t r1 a w b e r2 r3 y:3") == 1.0
    assert counting.score(question, "3.") == 1.0
    assert counting.score(question, " s t r1 a w b e r2 r y:2") == 0.0
    assert counting.score(question, "three") == 0.0


def test_counting_is_balanced_in_training_and_evaluation():
    task = counting.task()
    trained = [visible(task.train(i, 0)).split(":")[1] for i in range(4_000)]
    evaluated = [task.question(i, True).answer for i in range(1_000)]
    for answers in (trained, evaluated):
        share = {n: answers.count(n) / len(answers) for n in "0123"}
        assert max(share.values()) < 0.45
        assert share["0"] > 0.1 and share["2"] > 0.25 and share["3"] > 0.1


def test_constant_answers_are_weak(name):
    questions = [get(name).question(i, True) for i in range(400)]
    answer, share = constant_baseline(questions)
    assert share == get(name).constant_baseline(questions)[1] < (0.5 if name == "counting" else 0.15)
    assert sum(question.answer == answer for question in questions) == round(share * len(questions))
    assert constant_baseline([]) == ("", 0.0)


def test_identity_has_one_answer_a_kind():
    assert set(identity._TRAIN) == set(identity._PRACTICE) == set(identity._UNSEEN) == set(identity.ANSWERS)
    assert len({normalise(answer) for answer in identity.ANSWERS.values()}) == 12
    kinds: dict[str, set[str]] = {}
    for which in (TRAIN, PRACTICE, UNSEEN):
        for kind, templates in identity._by_kind(which).items():
            for template in templates:
                kinds.setdefault(plain_words(template), set()).add(kind)
    assert [text for text, found in kinds.items() if len(found) > 1] == []
    question = next(q for q in (get("identity").question(i, True) for i in range(99)) if q.facts["kind"] == "name")
    assert get("identity").score(question, "my name is Fledgling") == 1.0
    assert get("identity").score(question, identity.ANSWERS["who"]) == 0.0


def test_facts_are_the_docstrings_of_this_python():
    import math

    found = stdlib.facts()
    assert len(found) == stdlib.FACTS == len({fact.does for fact in found})
    by_name = {f"{fact.module}.{fact.name}": fact for fact in found}
    assert by_name["math.sqrt"].does == math.sqrt.__doc__.strip().splitlines()[-1].strip()
    assert all(len(fact.does) <= stdlib.LONGEST and fact.does.isascii() for fact in found)
    assert stdlib.facts(10) == found[:10]
    with pytest.raises(UserError, match="lower the number"):
        stdlib.facts(100_000)


def test_a_module_is_asked_for_only_where_one_has_the_name():
    only = {f"{fact.module}.{fact.name}" for fact in stdlib.facts() if fact.only}
    for i in range(2_000):
        question = get("stdlib").question(i, True)
        assert question.facts["kind"] == "does" or question.facts["name"] in only


def test_the_harvest_is_large_sorted_and_clean():
    words = harvest()
    assert len(words) >= 5_000 and list(words) == sorted(set(words))
    assert all(word.isascii() and word.islower() and word.isalpha() and 3 <= len(word) <= 12 for word in words)
    assert not set(real_words(True, 12)) & set(real_words(False, 12))
    assert 0.07 < len(real_words(True, 12)) / len(words) < 0.13
    rng = random.Random(1)
    letters = "".join(made_up_word(rng, 10) for _ in range(2_000))
    assert min(letters.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz") > 50


def test_patterns_expand_in_order_and_nest():
    assert expand("[a|b] c", "x[|y]") == ("a c", "b c", "x", "xy")
    assert expand("[a|[b|c] d]") == ("a", "b d", "c d")
    assert capital("{a} and") == "{a} and" and capital("what") == "What"


def test_a_mixture_follows_its_weights_and_joins_a_few():
    weights = {"arithmetic": 3.0, "spelling": 1.0, "identity": 0.0}
    examples = [mixture_example(weights, i, 5) for i in range(3_000)]
    assert examples[:50] == [mixture_example(dict(reversed(weights.items())), i, 5) for i in range(50)]
    single = [e for e in examples if len(e["messages"]) == 2]
    tools = sum(isinstance(e["messages"][1]["content"], list) for e in single)
    assert 0.70 < tools / len(single) < 0.80
    assert 0.04 < 1 - len(single) / len(examples) < 0.10
    for example in examples[:300]:
        check(example)


def test_unknown_names_and_empty_mixtures_are_told_plainly():
    with pytest.raises(UserError, match='did you mean "spelling"'):
        get("speling")
    with pytest.raises(UserError, match="mixture of tasks is empty"):
        mixture_example({"spelling": 0.0}, 0, 0)


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
    mine = source(f"chat:{path}")
    epoch = [mine.train(i, 1) for i in range(6)]
    assert len({json.dumps(c) for c in epoch}) == 6
    assert any(epoch != [mine.train(i, 1) for i in range(6 * n, 6 * n + 6)] for n in (1, 2, 3))
    for conversation in epoch:
        check(conversation)


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
        source(f"chat:{path}")
    message = str(error.value)
    assert f"{path}:2: " in message and problem in message and "expected {" in message and "\n" not in message


def test_a_file_that_is_missing_empty_or_not_utf8_is_named(tmp_path):
    for path, problem in (
        (tmp_path / "none.jsonl", "cannot read"),
        (write(tmp_path / "empty.jsonl", ""), "holds no conversation"),
    ):
        with pytest.raises(UserError, match=problem):
            source(f"chat:{path}")
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        source(f"chat:{tmp_path / 'latin.jsonl'}")
