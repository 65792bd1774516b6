"""CORE's prompts as text, worked out by hand for each kind of task and convention; files that are corrupt.

Random(1234 + i).sample(range(3), 2) is [1, 0], [2, 1], [2, 1], [0, 1] for i = 0 to 3: places among the other items.
"""

import random

import pytest

from fledgling.config import UserError
from fledgling.tasks.core import (
    CoreItem,
    build_prompts,
    find_core_bundle,
    number_passages,
    read_core_items,
    read_core_tasks,
    sample_foundry_shots,
    select_items,
)
from tests.made_up_core import write_core_bundle


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return {task.label: task for task in read_core_tasks(write_core_bundle(tmp_path_factory.mktemp("data")))}


def texts(task, convention):
    """The texts of all choices of all items, in the order of the file."""
    return [prompt.texts for prompt in build_prompts(task, read_core_items(task), convention)]


ITALY = "Question: The capital of Italy?\nAnswer: "
FRANCE = "Question: The capital of France?\nAnswer: "
SPAIN = "Question: The capital of Spain?\nAnswer: "
GREECE = "Question: The capital of Greece?\nAnswer: "


def test_multiple_choice_is_written_after_its_examples(tasks):
    first, second, _, last = texts(tasks["choice"], "nanochat")
    assert first == [
        f"{SPAIN}Madrid city\n\n{FRANCE}Paris city\n\n{ITALY}{choice}" for choice in ("Rome city", "Rom", "Oslo is it")
    ]
    assert second[1] == f"{GREECE}Athens city\n\n{SPAIN}Madrid city\n\n{FRANCE}Rom"
    assert last[2] == f"{ITALY}Rome city\n\n{FRANCE}Paris city\n\n{GREECE}Oslo is it"


def test_multiple_choice_without_examples_puts_a_space_before_the_choice(tasks):
    assert texts(tasks["choice_zeroshot"], "nanochat")[3] == [
        "Question: The capital of Greece? Athens city",
        "Question: The capital of Greece? Rom",
        "Question: The capital of Greece? Oslo is it",
    ]


def test_a_query_keeps_its_own_trailing_space(tasks):
    """As in the published language identification: "Answer: " and the delimiter's space make two.

    Random(1234).sample(range(5), 1) is [3]: of t, u, v, w, x the letter w.
    """
    assert texts(tasks["letters"], "nanochat")[0] == [
        f"Pick w.\nA. yes\nB. no\nAnswer:  A\n\nPick s.\nA. yes\nB. no\nAnswer:  {letter}" for letter in "AB"
    ]


def test_schema_puts_each_choice_before_the_common_end(tasks):
    assert texts(tasks["schema"], "nanochat")[:2] == [
        [
            "The cup fell off the table because the cup was round.",
            "The cup fell off the table because the table was round.",
        ],
        ["Ann thanked Sue because Ann had helped her.", "Ann thanked Sue because Sue had helped her."],
    ]


def test_schema_with_an_example_shows_the_right_context(tasks):
    """Random(1234).sample(range(2), 1) is [1]: of items 1 and 2 the second."""
    assert random.Random(1234).sample(range(2), 1) == [1]
    assert texts(tasks["schema_shots"], "nanochat")[0] == [
        f"The dog chased the cat and the cat got away.\n\nThe cup fell off the table because the {thing} was round."
        for thing in ("cup", "table")
    ]


def test_language_modelling_with_examples_strips_every_context(tasks):
    first, *_, last = texts(tasks["language"], "nanochat")
    line = "{} is where they eat in\nAnswer: {}"
    assert first == [
        "\n\n".join([line.format("Spain", "Madrid"), line.format("France", "Paris"), line.format("Italy", "Rome")])
    ]
    assert last == [
        "\n\n".join([line.format("Italy", "Rome"), line.format("France", "Paris"), line.format("Greece", "Athens")])
    ]


def test_language_modelling_is_written_without_examples(tasks):
    assert [text for (text,) in texts(tasks["language_zeroshot"], "nanochat")] == [
        "Italy is where they eat in\nAnswer: Rome",
        "France is where they eat in\nAnswer: Paris",
        "Spain is where they eat in\nAnswer: Madrid",
        "Greece is where they eat in\nAnswer: Athens",
    ]


def test_foundry_separates_by_a_line_feed_and_ends_a_context_before_its_space(tasks):
    """One Random(1234) in turn draws {2, 3} of four items for item 0, then {0, 2} for item 1."""
    first, second, *_ = build_prompts(tasks["choice"], read_core_items(tasks["choice"]), "foundry")
    assert first.examples == f"{SPAIN}Madrid city\n{GREECE}Athens city"
    assert first.choices[1] == ("\nQuestion: The capital of Italy?\nAnswer:", "Rom")
    assert second.examples == f"{ITALY}Rome city\n{SPAIN}Madrid city"
    (language, *_) = build_prompts(tasks["language"], read_core_items(tasks["language"]), "foundry")
    line = "{} is where they eat in\nAnswer: {}"
    assert language.examples == f"{line.format('Spain', 'Madrid')}\n{line.format('Greece', 'Athens')}"
    assert language.choices == (("\nItaly is where they eat in\nAnswer:", "Rome"),)
    (schema, *_) = build_prompts(tasks["schema"], read_core_items(tasks["schema"]), "foundry")
    assert schema.examples == "" and schema.choices[0] == ("The cup fell off the table because the cup", "was round.")
    (shown, *_) = build_prompts(tasks["schema_shots"], read_core_items(tasks["schema_shots"]), "foundry")
    assert shown.choices[0][0] == "\nThe cup fell off the table because the cup"


def test_foundry_never_draws_the_item_itself_and_as_many_as_there_are():
    generator = random.Random(1234)
    for size in (1, 2, 5, 40):
        for index in range(size):
            drawn = sample_foundry_shots(size, 10, index, generator)
            assert index not in drawn and len(drawn) == len(set(drawn)) == min(10, size - 1)


def test_the_order_is_shuffled_with_the_published_seed_and_cut(tasks):
    items = read_core_items(tasks["letters"])
    shown = [item.contexts[0][5] for item in select_items(items, None, "nanochat")]
    assert shown == list("tsvuxw")  # of Random(1337).shuffle on six things
    assert [item.contexts[0][5] for item in select_items(items, 2, "nanochat")] == list("ts")
    assert select_items(items, None, "foundry") == items and select_items(items, 2, "foundry") == select_items(
        items, 2, "nanochat"
    )


@pytest.mark.parametrize("convention", ["nanochat", "foundry"])
def test_fewer_items_than_examples_is_no_error(tasks, convention):
    (prompt,) = build_prompts(tasks["choice"], read_core_items(tasks["choice"])[:1], convention)
    assert prompt.examples == ""
    pair = list(build_prompts(tasks["choice"], read_core_items(tasks["choice"])[:2], convention))
    assert "France" in pair[0].examples and "Italy" in pair[1].examples


@pytest.mark.parametrize(
    ("file", "line", "text", "word"),
    [
        ("facts/choice.jsonl", 2, '{"query": "Question', "choice.jsonl:2: not whole JSON"),
        ("facts/choice.jsonl", 3, '{"question": "a", "choices": ["b"], "gold": 0}', "choice.jsonl:3: expected query"),
        ("facts/choice.jsonl", 1, '{"query": "a", "choices": ["b"], "gold": 4}', "choice.jsonl:1: gold is 4"),
        ("facts/choice.jsonl", 1, '{"query": "a", "choices": ["b", 5], "gold": 0}', "choice.jsonl:1: contexts and"),
        ("facts/choice.jsonl", 1, '{"query": "a", "choices": ["b"], "gold": true}', "choice.jsonl:1: expected gold"),
        ("words/schema.jsonl", 2, '["a"]', "schema.jsonl:2: expected context_options"),
        ("words/language.jsonl", 4, '{"context": "a", "continuation": ""}', "language.jsonl:4: contexts and"),
    ],
)
def test_a_bad_line_is_named_by_file_and_line(tmp_path, file, line, text, word):
    path = write_core_bundle(tmp_path) / "core" / "eval_data" / file
    lines = path.read_text().split("\n")
    lines[line - 1] = text
    path.write_text("\n".join(lines))
    broken = next(task for task in read_core_tasks(tmp_path) if task.file == path)
    with pytest.raises(UserError, match=word):
        read_core_items(broken)


def test_a_bundle_that_is_missing_says_how_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"no CORE bundle under .*fledgling data fetch core"):
        read_core_tasks(tmp_path)
    assert find_core_bundle(tmp_path) is None


def test_parts_that_are_missing_or_unknown_are_named(tmp_path):
    root = write_core_bundle(tmp_path)
    with pytest.raises(UserError, match='"chioce" - did you mean "choice"'):
        read_core_tasks(root, ["chioce"])
    assert [task.label for task in read_core_tasks(root, ["schema", "choice"])] == ["choice", "schema"]
    (root / "core" / "eval_data" / "facts" / "letters.jsonl").unlink()
    letters = read_core_tasks(root, ["letters"])[0]
    with pytest.raises(UserError, match=r"letters\.jsonl: cannot be read"):
        read_core_items(letters)
    (root / "core" / "eval_meta_data.csv").write_text("Task,Baseline\nchoice,25\n")
    with pytest.raises(UserError, match=r"eval_meta_data\.csv"):
        read_core_tasks(root)
    (root / "core" / "core.yaml").write_text("icl_tasks: 5")
    with pytest.raises(UserError, match=r"core\.yaml"):
        read_core_tasks(root)


def test_items_that_share_a_passage_have_one_number():
    story, other = "A story of a fox. " * 20, "Another story of a hen. " * 20
    contexts = [f"{story}Q: who?", "Instruction: add. 1 + 2 =", f"{other}Q: who?", f"{story}Q: when? A: now. Q: why?"]
    contexts += ["Instruction: add. 3 + 4 =", "Instruction: add. 1 + 2 ="]
    numbers = number_passages([CoreItem((context,), ("x",), 0) for context in contexts])
    assert numbers[0] == numbers[3] and numbers[1] == numbers[5] and len(set(numbers)) == 4
