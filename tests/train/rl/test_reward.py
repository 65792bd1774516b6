"""Rewards: parts and their weights; functions of the user's that fail are told, and the run goes on once mended."""

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
from fledgling.train.rl.reward import CustomReward, RewardScorer, is_well_formed
from tests.tiny import tiny
from tests.train.rl.small import tokenizer


def said(text: str, finish: str = "stop") -> Completion:
    words = tokenizer()
    tokens = [*words.encode(text), *([words.assistant_end] if finish == "stop" else [])]
    return Completion(tokens, [-1.0] * len(tokens), [False] * len(tokens), finish)


def test_the_parts_add_up(tmp_path):
    (tmp_path / "mine.py").write_text("def short(question, answer):\n    return -len(answer) / 10\n")
    mine = f"{tmp_path / 'mine.py'}:short"
    table = RLConfig(
        rewards={"task": 1.0, "format": 0.5, mine: 2.0},
        length_penalty=1.0,
        length_penalty_free_tokens=2,
        max_new_tokens=8,
    )
    task, answers = load_task("arithmetic"), [said("12"), said("12", "length"), said("no")]
    question = Question("arithmetic", "What is 5 + 7?", "12", {"kind": "known", "op": "+", "a": 5, "b": 7})
    rewards = RewardScorer(table, tokenizer())
    try:
        total, parts = rewards.score([(task, question)] * 3, answers)
    finally:
        rewards.close()
    assert parts["task"].tolist() == [1, 1, 0]
    assert parts["format"].tolist() == [1, 0, 1]
    assert parts[mine].tolist() == [-0.2, -0.2, -0.2]
    lengths = [len(a.tokens) for a in answers]
    cost = [-max(0, n - 2) / 6 for n in lengths]
    np.testing.assert_allclose(parts["length_cost"], cost)
    np.testing.assert_allclose(total, [1 + 0.5 - 0.4 + cost[0], 1 - 0.4 + cost[1], 0.5 - 0.4 + cost[2]])


def test_an_open_call_of_a_tool_is_not_well_formed():
    words = tokenizer()
    whole = [words.python_start, *words.encode("1+1"), words.python_end, *words.encode("2"), words.assistant_end]
    for tokens, finish, expected in (
        (whole, "stop", True),
        ([t for t in whole if t != words.python_end], "stop", False),
    ):
        one = Completion(tokens, [0.0] * len(tokens), [False] * len(tokens), finish)
        assert is_well_formed(words, one, "2") is expected
    assert not is_well_formed(words, said(""), "")


FAILING = {
    "raises": ("raise ValueError('what is\\n this?')", "raised ValueError: what is this?"),
    "hangs": ("while True: pass", "took more than 0.5 s"),
    "holds the interpreter": ("import re; re.match('(a+)+$', 'a' * 64 + 'b')", "took more than 0.5 s"),
    "says nonsense": ("return 'good'", "returned 'good', not a finite number"),
    "says nothing": ("pass", "returned None, not a finite number"),
    "is not a number": ("return float('nan')", "returned nan, not a finite number"),
    "leaves": ("import os; os._exit(3)", "ended its process (exit code 3)"),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_failing_reward_is_told_with_its_name_and_the_answer(case, tmp_path):
    code, why = FAILING[case]
    (tmp_path / "mine.py").write_text(f"def judge(question, answer):\n    print('noise')\n    {code}\n")
    own = CustomReward(f"{tmp_path / 'mine.py'}:judge", 0.5)
    rewards = RewardScorer(RLConfig(rewards={"format": 1.0}), tokenizer())
    rewards.custom_rewards, rewards.weights = {own.spec: own}, {own.spec: 1.0}
    question = Question("spelling", "Spell owl.", "o w l", {"word": "owl"})
    with pytest.raises(UserError) as caught:
        rewards.score([(load_task("spelling"), question)], [said("o w l")])
    message = str(caught.value)
    assert f'reward "{own.spec}" {why}' in message and "\n" not in message
    assert '"Spell owl."' in message and '"o w l"' in message
    assert own.process is None, "the process is gone"


@pytest.mark.parametrize(
    ("spec", "why"),
    [("no_such_module:f", "ModuleNotFoundError"), ("math:pi", "not a function"), ("math:f", "attribute")],
)
def test_a_function_that_is_not_there(spec, why):
    own = CustomReward(spec, 1.0)
    with pytest.raises(UserError, match=why):
        _with(own).score([(load_task("spelling"), Question("spelling", "?", "!", {"word": "owl"}))], [said("x")])


def _with(own: CustomReward) -> RewardScorer:
    rewards = RewardScorer(RLConfig(), tokenizer())
    rewards.custom_rewards, rewards.weights = {own.spec: own}, {own.spec: 1.0}
    return rewards


def test_an_unknown_part_is_refused():
    with pytest.raises(UserError, match='unknown "formt" - did you mean "format"'):
        RewardScorer(RLConfig(rewards={"formt": 1.0}), tokenizer())


def test_a_run_goes_on_once_its_reward_is_mended(tmp_path):
    """The weights at the end are those of a run whose reward never failed."""
    good = "def judge(question, answer):\n    return answer.count('e') / (1 + len(answer))\n"
    count = tmp_path / "count"
    bad = (
        f"import pathlib\nplace = pathlib.Path({str(count)!r})\n"
        "def judge(question, answer):\n"
        "    n = int(place.read_text()) if place.exists() else 0\n    place.write_text(str(n + 1))\n"
        "    return answer.count('e') / (1 + len(answer)) if n < 30 else 1 / 0\n"
    )
    file = tmp_path / "mine.py"
    recipe = tiny(tmp_path, **{"rl.rewards": f'{{"{file}:judge" = 1.0}}', "stages": '["rl"]', "rl.save_every": 0})
    outcomes = []
    for name, first in (("whole", good), ("mended", bad)):
        one = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, out=str(tmp_path / name)))
        file.write_text(first)
        if first is bad:
            with pytest.raises(UserError, match="raised ZeroDivisionError"):
                run.run_stage(one, "rl", quiet=True)
            assert checkpoint.find_latest_checkpoint(tmp_path / name / "rl" / "checkpoints").name == "step-00000002"
            file.write_text(good)
        assert run.run_stage(one, "rl", quiet=True)
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
