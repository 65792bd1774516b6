"""The made-up language: 200 words of one word each, sentences in its order, and exams of held-out sentences."""

from fledgling.tasks import load_task
from fledgling.tasks.skills.language import KINDS, list_english, list_wordings, load_lexicon, make_task
from fledgling.tasks.skills.templates import load_templates
from fledgling.tasks.task import DEV, PRACTICE, TEST, TRAIN, is_held_out


def test_two_hundred_words_have_a_word_each_which_is_no_english_one():
    lexicon = load_lexicon()
    assert len(lexicon) == len(set(lexicon.values())) == 200
    assert not set(lexicon) & set(lexicon.values())
    assert set(lexicon) == {word for kind in KINDS for word in list_english(kind)}


def test_a_translation_has_the_order_of_the_language():
    """Read back from the answer: subject, its adjective, object, its adjective, verb, adverb."""
    kind_of = {load_lexicon()[word]: kind for kind in KINDS for word in list_english(kind)}
    orders = {
        tuple(kind_of[word] for word in make_task().get_practice_question(n, 1).answer.split()) for n in range(200)
    }
    n, a, v, d = "nouns", "adjectives", "verbs", "adverbs"
    assert orders == {(n, a, n, v), (n, n, a, v), (n, a, n, a, v), (n, n, v, d)}
    english = {word: kind for kind in KINDS for word in list_english(kind)}
    question = make_task().get_practice_question(0, 1)
    assert len([word for word in question.facts["sentence"].split() if word in english]) == len(question.answer.split())


def test_no_sentence_of_an_exam_is_trained_or_practised_and_all_words_are():
    task, held_out = load_task("language"), set()
    for which in (TRAIN, PRACTICE, DEV, TEST):
        questions = task.draw_exam(which, 200)
        assert len(questions) == 200 and all(is_held_out("language", q.facts["sentence"]) for q in questions)
        held_out |= {question.facts["sentence"] for question in questions}
    prompts = [task.get_train_conversation(n, 3)["messages"] for n in range(3000)]
    assert not any(sentence in messages[0]["content"] for messages in prompts[:300] for sentence in held_out)
    trained = {word for messages in prompts for word in messages[1]["content"].split()}
    assert trained == set(load_lexicon().values())


def test_the_sets_of_wordings_are_disjoint_and_a_right_answer_scores():
    sets = [list_wordings(which) for which in (TRAIN, PRACTICE, DEV, TEST)]
    assert len({wording for one in sets for wording in one}) == sum(map(len, sets))
    assert all("{s}" in wording for one in sets for wording in one)
    task = load_task("language")
    question = task.draw_exam(TEST, 1)[0]
    assert task.score(question, question.answer.upper() + ".") == 1
    assert task.score(question, " ".join(reversed(question.answer.split()))) == 0
    assert set(load_templates("language")["forms"]) == {
        "the {a} {n} {v} the {m}", "the {n} {v} the {a} {m}", "the {a} {n} {v} the {b} {m}", "{d} the {n} {v} the {m}"
    }  # fmt: skip
