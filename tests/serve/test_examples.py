"""The questions that the page offers: of the generated tasks that the recipe taught, each short."""

from types import SimpleNamespace

import pytest

from fledgling.config import UserError
from fledgling.serve import examples

RECIPE = """
[sft.mixture]
arithmetic = 1.0
spelling = 2.0
stdlib = 1.0
"chat:mine.jsonl" = 1.0
[rl.tasks]
counting = 1.0
arithmetic = 1.0
"""


def load_task(name):
    """A task whose first question is too long, and second has two lines; spelling cannot be loaded."""
    if name == "spelling":
        raise UserError("no words here")
    prompts = [f"{name}? " * 40, f"{name}?\nnow", *([] if name == "stdlib" else [f"{name}?"])]
    return SimpleNamespace(
        get_practice_question=lambda index, seed: SimpleNamespace(prompt=prompts[index % len(prompts)])
    )


@pytest.mark.parametrize(
    ("recipe", "stage", "expected"),
    [
        (RECIPE, "rl", ("arithmetic?", "counting?")),
        (RECIPE, "", ("arithmetic?", "counting?")),
        (RECIPE, "sft", ("arithmetic?",)),
        (RECIPE, "pretrain", ()),
        (f'stages = ["sft"]\n{RECIPE}', "", ("arithmetic?",)),
        (RECIPE.replace("counting = 1.0", "counting = 0.0"), "rl", ("arithmetic?",)),
        ("", "rl", ()),
        ("no TOML [", "rl", ()),
        ("[sft]", "rl", ()),
    ],
)
def test_the_page_offers_a_short_question_of_each_generated_task_that_was_taught(recipe, stage, expected, monkeypatch):
    monkeypatch.setattr(examples, "load_task", load_task)
    assert examples.list_examples(recipe, stage) == expected
