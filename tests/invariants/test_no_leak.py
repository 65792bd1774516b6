"""No question of an exam is a prompt that any stage of any recipe learns from or practises on.

Held-out words, pairs, combinations and wordings make it so (tests/tasks/skills/); here the prompts are made as
training makes them, and compared.
"""

from types import SimpleNamespace

import pytest

from fledgling.config import DEFAULT_STAGES, Recipe, load_recipe, recipe_names
from fledgling.data.mixture import SourceOrder
from fledgling.tasks import SKILLS, load_task, make_mixture_example
from fledgling.tasks.task import DEV, PRACTICE, TEST, TRAIN, normalize_text
from fledgling.train.data_preparer import split_mixture
from fledgling.train.rl.rollout_stream import RolloutStream

QUESTIONS = 200  # of an exam, the default
CONVERSATIONS = 300  # of a stage that are compared here; `python -m tests.invariants.test_no_leak` compares more
RUNS = [(name, None) for name in recipe_names()] + [("quickstart", seed) for seed in (1, 2, 3)]


def exam_prompts() -> dict[str, str]:
    """Returns every question of every exam of the skills, normalized, with its exam's name."""
    counts = dict.fromkeys((TRAIN, TEST, DEV, PRACTICE), QUESTIONS)
    exams = [exam for skill in SKILLS for exam in load_task(skill).list_exams(counts)]
    assert {name for name, _ in exams} == {
        *(f"{skill}{end}" for skill in ("arithmetic", "spelling", "counting") for end in ("", "_test", "_dev")),
        *(f"{skill}_practice" for skill in ("arithmetic", "spelling", "counting", "stdlib")),
        *(f"{skill}_{end}" for skill in ("identity", "stdlib") for end in ("test", "dev")),
    }
    return {normalize_text(question.prompt): name for name, questions in exams for question in questions}


def practice_prompts(recipe: Recipe) -> list[str]:
    """Returns every prompt of the recipe's reinforcement learning that comes from a skill, as its stream draws them."""
    names = sorted(name for name, weight in recipe.rl.tasks.items() if weight > 0)
    if "rl" not in recipe.stages or not set(names) <= set(SKILLS):
        return []
    order = SourceOrder.from_weights([recipe.rl.tasks[name] for name in names])
    stream = SimpleNamespace(source_order=order, tasks=[load_task(name) for name in names], seed=recipe.seed)
    count = (recipe.rl.steps or 0) * recipe.rl.prompts_per_round
    return [RolloutStream.sample_question(stream, index)[1].prompt for index in range(count)]


def training_prompts(recipe: Recipe, count: int = CONVERSATIONS) -> list[str]:
    """Returns the prompts of the first `count` generated conversations of every stage, as its shard has them."""
    prompts = []
    for stage in recipe.stages:
        mixture = recipe.stage_config(stage).mixture
        tasks = split_mixture(mixture).tasks if mixture and stage in DEFAULT_STAGES else {}
        seed = recipe.seed * len(DEFAULT_STAGES) + DEFAULT_STAGES.index(stage) if tasks else 0
        for index in range(count if tasks else 0):
            messages = make_mixture_example(tasks, index, seed)["messages"]
            prompts += [message["content"] for message in messages if message["role"] == "user"]
    return prompts


def find_leaks(prompts: list[str], exams: dict[str, str]) -> list[tuple[str, str]]:
    """Returns (exam, prompt) of every prompt that an exam asks."""
    return [(exams[text], text) for text in map(normalize_text, prompts) if text in exams]


@pytest.mark.parametrize(("name", "seed"), RUNS)
def test_no_exam_question_is_learned_or_practised(name, seed):
    recipe = load_recipe(name, [] if seed is None else [f"seed={seed}"])
    practised, exams = practice_prompts(recipe), exam_prompts()
    assert find_leaks(practised, exams) == []
    assert find_leaks(training_prompts(recipe), exams) == []
    if name == "quickstart":
        assert len(practised) == recipe.rl.steps * recipe.rl.prompts_per_round


def test_a_practised_question_in_an_exam_is_found():
    exams, recipe = exam_prompts(), load_recipe("quickstart")
    for prompt in (practice_prompts(recipe)[7], training_prompts(recipe, 3)[-1]):
        assert find_leaks([f"  {prompt.upper()} "], {**exams, normalize_text(prompt): "exam"})


def test_the_identity_prompts_of_practice_are_all_practised_and_so_no_exam():
    practised = [load_task("identity").get_practice_question(index, 1) for index in range(600)]
    assert {question.facts["wording"] for question in practised} == set(load_task("identity").list_wordings(PRACTICE))
    assert load_task("identity").list_exams({PRACTICE: 50, TRAIN: 50}) == []


if __name__ == "__main__":
    found = exam_prompts()
    for recipe_name, recipe_seed in RUNS:
        whole = load_recipe(recipe_name, [] if recipe_seed is None else [f"seed={recipe_seed}"])
        compared = practice_prompts(whole) + training_prompts(whole, 120_000)
        print(
            recipe_name,
            recipe_seed,
            f"{len(compared):,} prompts, {len(find_leaks(compared, found))} in exams",
            flush=True,
        )
