"""Rewards: parts and their weights; a custom function that fails is named, and the run resumes once it is repaired."""

import dataclasses
import math

import numpy as np
import pytest

from fledgling.config import RLConfig, UserError
from fledgling.infer.request import Completion
from fledgling.record import checkpoint, read_jsonl
from fledgling.tasks import load_task
from fledgling.tasks.task import Question
from fledgling.train import run
from fledgling.train.rl.reward import (
    MAX_QUOTE_LENGTH,
    CustomReward,
    RewardScorer,
    describe_answer,
    is_well_formed,
    require_rewards,
)
from tests.all_stages import make_all_stages_recipe
from tests.train.rl.small_problems import tokenizer


def answer_of(text: str, finish: str = "stop") -> Completion:
    words = tokenizer()
    tokens = [*words.encode(text), *([words.assistant_end] if finish == "stop" else [])]
    return Completion(tokens, [-1.0] * len(tokens), [False] * len(tokens), finish)


def test_the_parts_add_up(tmp_path):
    (tmp_path / "custom.py").write_text("def short(question, answer):\n    return -len(answer) / 10\n")
    custom = f"{tmp_path / 'custom.py'}:short"
    config = RLConfig(
        rewards={"task": 1.0, "format": 0.5, custom: 2.0},
        length_penalty=1.0,
        length_penalty_free_tokens=2,
        max_new_tokens=8,
    )
    task, answers = load_task("arithmetic"), [answer_of("12"), answer_of("12", "length"), answer_of("no")]
    question = Question("arithmetic", "What is 5 + 7?", "12", {"kind": "known", "op": "+", "a": 5, "b": 7})
    rewards = RewardScorer(config, tokenizer())
    try:
        scores = rewards.score([(task, question)] * 3, answers)
    finally:
        rewards.close()
    total, parts = scores.total, scores.parts
    assert parts["task"].tolist() == [1, 1, 0]
    assert parts["format"].tolist() == [1, 0, 1]
    assert parts[custom].tolist() == [-0.2, -0.2, -0.2]
    lengths = [len(a.tokens) for a in answers]
    cost = [-max(0, n - 2) / 6 for n in lengths]
    np.testing.assert_allclose(parts["length_cost"], cost)
    np.testing.assert_allclose(total, [1 + 0.5 - 0.4 + cost[0], 1 - 0.4 + cost[1], 0.5 - 0.4 + cost[2]])


def test_a_long_answer_is_quoted_by_its_beginning():
    text = "x" * 500
    assert (
        describe_answer(Question("arithmetic", "What?", "1"), text)
        == f'question "What?", answer "{text[: MAX_QUOTE_LENGTH - 3]}..."'
    )


def test_a_reward_that_fails_on_an_answer_is_found_before_the_run(tmp_path):
    (tmp_path / "custom.py").write_text("def ratio(question, answer):\n    return 1 / len(answer.split())\n")
    name = f"{tmp_path / 'custom.py'}:ratio"
    config = RLConfig(rewards={name: 1.0})
    require_rewards(config)
    with pytest.raises(
        UserError, match=r'raised ZeroDivisionError.*"What\?", answer ""; mend it before the run begins'
    ):
        require_rewards(config, [Question("arithmetic", "What?", "1")])
    with pytest.raises(UserError, match=r'rl.rewards "model:gone": gone does not exist'):
        require_rewards(RLConfig(rewards={"model:gone": 1.0}))


def test_an_open_call_of_a_tool_is_not_well_formed():
    words = tokenizer()
    complete = [words.python_start, *words.encode("1+1"), words.python_end, *words.encode("2"), words.assistant_end]
    for tokens, finish, expected in (
        (complete, "stop", True),
        ([t for t in complete if t != words.python_end], "stop", False),
    ):
        completion = Completion(tokens, [0.0] * len(tokens), [False] * len(tokens), finish)
        assert is_well_formed(words, completion, "2") is expected
    assert not is_well_formed(words, answer_of(""), "")


FAILING = {
    "raises": ("raise ValueError('what is\\n this?')", "raised ValueError: what is this?"),
    "hangs": ("while True: pass", "took more than 0.5 s"),
    "holds the interpreter": ("import re; re.match('(a+)+$', 'a' * 64 + 'b')", "took more than 0.5 s"),
    "returns text": ("return 'good'", "returned 'good', not a finite number"),
    "returns nothing": ("pass", "returned None, not a finite number"),
    "is not a number": ("return float('nan')", "returned nan, not a finite number"),
    "exits": ("import os; os._exit(3)", "ended its process (exit code 3)"),
}


@pytest.mark.parametrize("case", FAILING)
def test_the_error_of_a_failing_reward_names_it_and_the_answer(case, tmp_path):
    code, why = FAILING[case]
    (tmp_path / "custom.py").write_text(f"def judge(question, answer):\n    print('noise')\n    {code}\n")
    custom = CustomReward(f"{tmp_path / 'custom.py'}:judge", 0.5 if "0.5 s" in why else 60.0)
    rewards = RewardScorer(RLConfig(rewards={"format": 1.0}), tokenizer())
    rewards.custom_rewards, rewards.weights = {custom.spec: custom}, {custom.spec: 1.0}
    question = Question("spelling", "Spell owl.", "o w l", {"word": "owl"})
    with pytest.raises(UserError) as caught:
        rewards.score([(load_task("spelling"), question)], [answer_of("o w l")])
    message = str(caught.value)
    assert f'reward "{custom.spec}" {why}' in message and "\n" not in message
    assert '"Spell owl."' in message and '"o w l"' in message
    assert custom.process is None, "the process is gone"


@pytest.mark.parametrize(
    ("spec", "why"),
    [("no_such_module:f", "ModuleNotFoundError"), ("math:pi", "not a function"), ("math:f", "attribute")],
)
def test_the_error_of_a_missing_function_says_what_is_missing(spec, why):
    custom = CustomReward(spec, 1.0)
    with pytest.raises(UserError, match=why):
        question = Question("spelling", "?", "!", {"word": "owl"})
        _scorer_with(custom).score([(load_task("spelling"), question)], [answer_of("x")])


def _scorer_with(custom: CustomReward) -> RewardScorer:
    rewards = RewardScorer(RLConfig(), tokenizer())
    rewards.custom_rewards, rewards.weights = {custom.spec: custom}, {custom.spec: 1.0}
    return rewards


def test_an_unknown_part_is_rejected():
    with pytest.raises(UserError, match='unknown "formt" - did you mean "format"'):
        RewardScorer(RLConfig(rewards={"formt": 1.0}), tokenizer())


def test_a_run_resumes_once_its_reward_is_repaired(tmp_path):
    """The weights at the end are those of a run whose reward never failed."""
    good = "def judge(question, answer):\n    return answer.count('e') / (1 + len(answer))\n"
    count = tmp_path / "count"
    bad = (
        f"import pathlib\nplace = pathlib.Path({str(count)!r})\n"
        "def judge(question, answer):\n"
        "    n = int(place.read_text()) if place.exists() else 0\n    place.write_text(str(n + 1))\n"
        "    return answer.count('e') / (1 + len(answer)) if n < 30 else 1 / 0\n"
    )
    file = tmp_path / "custom.py"
    recipe = make_all_stages_recipe(
        tmp_path, **{"rl.rewards": f'{{"{file}:judge" = 1.0}}', "stages": '["rl"]', "rl.save_every": 0}
    )
    outcomes = []
    for name, first in (("reference", good), ("repaired", bad)):
        run_recipe = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, out=str(tmp_path / name)))
        file.write_text(first)
        if first is bad:
            with pytest.raises(UserError, match="raised ZeroDivisionError"):
                run.run_stage(run_recipe, "rl", quiet=True)
            assert checkpoint.find_latest_checkpoint(tmp_path / name / "rl" / "checkpoints").name == "step-00000002"
            file.write_text(good)
        assert run.run_stage(run_recipe, "rl", quiet=True)
        outcomes.append(
            checkpoint.load_checkpoint(
                checkpoint.find_latest_checkpoint(tmp_path / name / "rl" / "checkpoints")
            ).tensors["model"]
        )
        lines = read_jsonl(tmp_path / name / "rl" / "metrics.jsonl")
        assert [line["step"] for line in lines] == [1, 2, 3, 4]
        assert all(math.isfinite(line["reward"]) and line["gradient_norm"] > 0 for line in lines)
    for name, value in outcomes[0].items():
        assert outcomes[1][name].equal(value), name
    notices = {n: str(read_jsonl(tmp_path / n / "rl" / "notices.jsonl")) for n in ("reference", "repaired")}
    assert "rl.rewards: its files changed since this stage began" in notices["repaired"]
    assert "files changed" not in notices["reference"]
