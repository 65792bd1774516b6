"""A user's environment runs in a process of its own: its errors name the instance, and it cannot hang a run."""

import pytest

from fledgling.config import UserError
from fledgling.tasks import load_task
from fledgling.tasks.environments import process
from fledgling.tasks.task import TEST

SOURCE = """
import os, time
from fledgling.tasks.environments import Environment
from fledgling.tasks.environments.environment import ToolError

class Doubling(Environment):
    max_turns = 3
    def reset(self, seed):
        print("prints do not disturb")
        self.seed = seed % 1000
        self.sum = 0
        return f"Double {self.seed} with add."
    def tools(self):
        return {"add": self.add}
    def add(self, number: int) -> str:
        if number == 666: raise ValueError("broken")
        if number == 667: time.sleep(60)
        if number == 668: os._exit(3)
        if number < 0: raise ToolError("only upwards")
        self.sum += number
        return str(self.sum)
    def turn_reward(self):
        return 0.25
    @property
    def solution(self):
        return str(2 * self.seed)
    def demonstrate(self, call, rng):
        call(f"add({self.seed})")
        return call(f"add({self.seed})")

class Bare(Environment):
    tools = lambda self: {}
    solution = property(lambda self: str(self.seed))
    def reset(self, seed):
        self.seed = seed
        return str(seed)
"""


@pytest.fixture
def spec(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(SOURCE)
    return f"env:{file}:Doubling"


def test_a_users_class_is_demonstrated_practised_and_scored(spec, tmp_path):
    task = load_task(spec)
    assert task.files() == [tmp_path / "mine.py"] and task.make_environment().max_turns == 3
    question = task.get_practice_question(0, 1)
    episodes = [task.start(question), task.start(task.get_practice_question(1, 1))]  # in play at once
    number = int(question.answer) // 2
    assert [episodes[0].call(f"add({number})"), episodes[1].call("add(1)")] == [str(number), "1"]
    assert episodes[0].call("add(-1)") == "error: only upwards"
    assert episodes[0].call(f"add({number})") == question.answer
    transcript = episodes[0].to_transcript(question.answer)
    assert (task.score(question, transcript), task.score_turns(question, transcript)) == (1.0, 0.75)
    parts = task.get_train_example(0, 1)["messages"][1]["content"]
    assert [part["type"] for part in parts] == ["python", "output", "python", "output", "text"]
    assert parts[-1]["text"] == parts[-2]["text"] == str(2 * int(parts[0]["text"][4:-1]))
    assert len(dict(task.list_exams({TEST: 5}))["env:Doubling_test"]) == 5


@pytest.mark.parametrize(
    ("number", "message"), [(666, "raised ValueError: broken"), (667, "took more than 0.5 s"), (668, "exit code 3")]
)
def test_a_class_that_fails_ends_the_round_with_its_name_and_goes_on_afterwards(spec, number, message, monkeypatch):
    task = load_task(spec)
    episode = task.start(task.get_practice_question(0, 1))
    monkeypatch.setattr(process, "CALL_TIMEOUT", 0.5)
    with pytest.raises(UserError, match=f"Doubling, instance {episode.seed}: call .*{message}"):
        episode.call(f"add({number})")
    monkeypatch.setattr(process, "CALL_TIMEOUT", 20.0)
    assert task.start(task.get_practice_question(0, 1)).call("add(2)") == "2"


def test_a_class_without_demonstrations_says_where_it_can_be_used(spec):
    task = load_task(spec.replace("Doubling", "Bare"))
    with pytest.raises(UserError, match=r"can be in rl\.tasks, not in a mixture"):
        task.get_train_example(0, 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("env:gessing", 'no environment "gessing".*guessing'),
        ("env:nowhere:Class", "cannot be loaded: ModuleNotFoundError"),
        ("env:random:Random", "Random is not a subclass"),
        ("env:", "no task"),
    ],
)
def test_a_wrong_name_is_one_line(name, message):
    with pytest.raises(UserError, match=message):
        load_task(name)


def test_a_process_keeps_the_newest_episodes(monkeypatch):
    monkeypatch.setattr(process, "MAX_EPISODES", 2)
    server = process.Server(load_task("env:guessing").make_environment)
    for number in range(4):
        server.answer(number, "reset", number)
    assert list(server.environments) == list(server.seeds) == [2, 3]
    assert "error" in server.answer(0, "call", "guess(1)")
