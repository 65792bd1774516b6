"""A user's environment runs in a process of its own: its errors name the instance, and it cannot hang a run."""

import re

import pytest

from fledgling.config import UserError
from fledgling.sandbox import restrictions
from fledgling.sandbox.restrictions import get_landlock_version, has_seccomp
from fledgling.tasks import load_task
from fledgling.tasks.environments import Environment, episode_process
from fledgling.tasks.environments.environment import MAX_OBSERVATION_CHARACTERS, write_transcript
from fledgling.tasks.environments.episode_process import EpisodeServer
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

class Nosy(Environment):
    def reset(self, seed):
        self.seed = seed
        return str(seed)
    def tools(self):
        return {"read": self.read, "try_all": self.try_all}
    solution = property(lambda self: str(self.seed))
    def read(self, path: str) -> str:
        return open(path).read()[:20]
    def try_all(self, folder: str) -> str:
        import socket, subprocess, threading
        attempts = {
            "read": lambda: open("/etc/passwd"), "list": lambda: os.listdir("/"),
            "write": lambda: open(folder + "/x", "w"), "connect": lambda: socket.socket(), "fork": os.fork,
            "run": lambda: subprocess.run(["true"]), "kill": lambda: os.kill(os.getppid(), 0),
            "thread": lambda: threading.Thread(target=print).start(), "remove": lambda: os.remove(__file__),
        }
        held = []
        for name, attempt in attempts.items():
            try:
                attempt()
            except (OSError, RuntimeError):
                held.append(name)
        return " ".join(sorted(set(attempts) - set(held))) or "held"

class Forgetful(Nosy):
    def reset(self, seed):
        self.seed = seed

class Free(Nosy):
    sandboxed = False

class Same(Doubling):
    solution = property(lambda self: '1')

class Wrong(Doubling):
    identity = property(lambda self: str(self.seed))
    solution = "nan"
    def reward(self, answer):
        return float(answer)
    def turn_reward(self):
        return float("nan")

class Bare(Environment):
    tools = lambda self: {}
    solution = property(lambda self: str(self.seed))
    def reset(self, seed):
        self.seed = seed
        return str(seed)
"""


ALLOWED = has_seccomp() and get_landlock_version() > 0


@pytest.mark.skipif(not ALLOWED, reason="this kernel has no Landlock or no seccomp")
def test_a_users_class_reads_its_folder_and_can_do_nothing_else(tmp_path):
    (tmp_path / "mine.py").write_text(SOURCE)
    (tmp_path / "words.txt").write_text("owl")
    task = load_task(f"env:{tmp_path / 'mine.py'}:Nosy")
    episode = task.start(task.get_practice_question(0, 1))
    assert episode.call(f'read("{tmp_path / "words.txt"}")') == "owl"
    assert episode.call(f'try_all("{tmp_path}")') == "held"
    with pytest.raises(
        UserError, match=r"PermissionError.*; the sandbox reads.* sandboxed = False in the class runs it"
    ):
        episode.call('read("/etc/passwd")')
    assert not (tmp_path / "x").exists() and (tmp_path / "mine.py").exists()


def test_a_class_may_ask_to_run_without_the_sandbox(tmp_path):
    (tmp_path / "mine.py").write_text(SOURCE)
    task = load_task(f"env:{tmp_path / 'mine.py'}:Free")
    assert "read" in task.start(task.get_practice_question(0, 1)).call(f'try_all("{tmp_path}/none")')


@pytest.mark.parametrize("missing", ["get_landlock_version", "has_seccomp"])
def test_without_a_layer_nothing_is_applied_and_nothing_runs(missing, monkeypatch, tmp_path):
    monkeypatch.setattr(restrictions, missing, lambda: 0)
    for applied in ("drop_capabilities", "apply_landlock", "apply_seccomp", "set_no_new_privileges"):
        monkeypatch.setattr(restrictions, applied, lambda *arguments: pytest.fail("applied"))
    (tmp_path / "mine.py").write_text(SOURCE)
    with pytest.raises(RuntimeError, match=r"no sandbox here .*sandboxed = False"):
        episode_process.load_server(f"{tmp_path / 'mine.py'}:Nosy")


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
    transcript = write_transcript([call for call, _ in episodes[0].calls], question.answer)
    assert (task.score(question, transcript), task.score_turns(question, transcript)) == (1.0, [0.25] * 3)
    parts = task.get_train_conversation(0, 1)["messages"][1]["content"]
    assert [part["type"] for part in parts] == ["python", "output", "python", "output", "text"]
    assert parts[-1]["text"] == parts[-2]["text"] == str(2 * int(parts[0]["text"][4:-1]))
    [(name, questions)] = task.list_exams({TEST: 5})
    assert re.fullmatch(r"env:[\w.]+:Doubling#[0-9a-f]{12}_test", name) and len(questions) == 5


@pytest.mark.parametrize(
    ("number", "message"), [(666, "raised ValueError: broken"), (667, "took more than 0.5 s"), (668, "exit code 3")]
)
def test_a_class_that_fails_ends_the_round_with_its_name_and_works_afterwards(spec, number, message, monkeypatch):
    task = load_task(spec)
    episode = task.start(task.get_practice_question(0, 1))
    monkeypatch.setattr(episode_process, "CALL_TIMEOUT", 0.5 if "0.5 s" in message else 60.0)
    with pytest.raises(UserError, match=f"Doubling, instance {episode.seed}: call .*{message}"):
        episode.call(f"add({number})")
    monkeypatch.setattr(episode_process, "CALL_TIMEOUT", 60.0)
    assert task.start(task.get_practice_question(0, 1)).call("add(2)") == "2"


def test_an_environment_without_held_out_instances_says_so_wherever_it_is_used(spec):
    task = load_task(spec.replace("Doubling", "Same"))
    for use in (
        lambda: task.list_exams({TEST: 1000}),
        lambda: task.get_practice_question(0, 1),
        lambda: task.get_train_conversation(0, 1),
    ):
        with pytest.raises(UserError, match=r"Same: none of 200 instances is .*: '1' is the identity of all; expected"):
            use()


@pytest.mark.parametrize("reward", ["nan", "inf", "-inf", "1.5", "-0.1"])
def test_a_reward_outside_0_to_1_is_an_error_that_names_the_instance(spec, reward):
    task = load_task(spec.replace("Doubling", "Wrong"))
    question = task.get_practice_question(0, 1)
    with pytest.raises(
        UserError, match=rf"Wrong, instance \d+: reward returned {reward}; expected a number from 0 to 1"
    ):
        task.score_batch([(question, write_transcript([], reward))])
    with pytest.raises(UserError, match="turn_reward returned nan; expected a finite number"):
        task.score_turns(question, write_transcript(["add(1)"], "1"))


def test_a_class_without_demonstrations_says_where_it_can_be_used(spec):
    task = load_task(spec.replace("Doubling", "Bare"))
    with pytest.raises(UserError, match=r"can be in rl\.tasks, not in a mixture"):
        task.get_train_conversation(0, 1)


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
    monkeypatch.setattr(episode_process, "MAX_EPISODES", 2)
    server = episode_process.EpisodeServer(load_task("env:guessing").make_environment)
    for number in range(4):
        server.answer(number, "reset", number)
    assert list(server.environments) == list(server.seeds) == [2, 3]
    assert "error" in server.answer(0, "call", "guess(1)")


TYPED = """
from fledgling.tasks.environments import Environment

class Colour: pass

class Odd(Environment):
    solution = "1"
    def reset(self, seed): return "x"
    def tools(self): return {"look": self.look}
    def look(self, x: Colour) -> str: return "y"
"""


def test_a_tool_whose_parameters_cannot_be_checked_is_named_when_the_class_is_loaded(tmp_path):
    (tmp_path / "mine.py").write_text(TYPED)
    with pytest.raises(UserError, match=r"environment .*:Odd: tool look: x has mine.Colour, expected int") as error:
        load_task(f"env:{tmp_path / 'mine.py'}:Odd")
    assert "\n" not in str(error.value)


def test_a_reset_that_returns_nothing_is_named_when_the_class_is_loaded(tmp_path):
    (tmp_path / "mine.py").write_text(SOURCE)
    with pytest.raises(UserError, match=r"environment .*:Forgetful: .*reset returned None, expected str$"):
        load_task(f"env:{tmp_path / 'mine.py'}:Forgetful")


class Plain(Environment):
    """Answers with its number, which is no text."""

    def reset(self, seed):
        self.seed = seed % 100
        return f"Which? {self.seed}"

    def tools(self):
        return {"see": self.see}

    def see(self, number: int) -> str:
        return "x" * 500 if number == 1 else str(number)

    @property
    def solution(self):
        return self.seed

    def demonstrate(self, call, rng):
        return " ".join(str(len(call("see(1)"))) if turn < 2 else call("see(2)") for turn in range(4))


def serve(**members) -> EpisodeServer:
    return EpisodeServer(type("Mine", (Plain,), members))


def test_a_solution_that_is_a_number_is_compared_as_text():
    server = serve()
    assert server.reset(0, 7)["solution"] == "7"
    assert server.reward(0, "7") == {"reward": 1.0} and server.reward(0, "8") == {"reward": 0.0}


def test_a_demonstration_sees_what_a_model_would():
    server = serve(max_turns=3)
    server.reset(0, 7)
    answer = server.demonstrate(0, 1)["answer"]
    assert answer == f"{MAX_OBSERVATION_CHARACTERS} {MAX_OBSERVATION_CHARACTERS} 2 error: no turn left of 3"


@pytest.mark.parametrize("text", ["higher", "", None, 3, "see(1"])
def test_a_demonstration_that_calls_no_call_is_named(text):
    server = serve(demonstrate=lambda self, call, rng: call(text))
    server.reset(0, 7)
    assert "expected the text of a call, such as 'name(1)'" in server.answer(0, "demonstrate", 1)["error"]


async def see_later(self, number: int) -> str:
    return str(number)


def see_parts(self, number: int) -> str:
    yield str(number)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"max_turns": "8"}, "max_turns is '8', expected a whole number from 1 on"),
        ({"max_turns": 0}, "max_turns is 0, expected"),
        ({"max_turns": True}, "max_turns is True, expected"),
        ({"max_new_tokens": None}, "max_new_tokens is None, expected"),
        ({"max_new_tokens": 12.0}, "max_new_tokens is 12.0, expected"),
        ({"see": see_later}, "tool see: it is async or a generator"),
        ({"see": see_parts}, "tool see: it is async or a generator"),
        ({"solution": lambda self: "7"}, "solution is a method, expected str: write @property before it"),
        ({"identity": property(lambda self: object())}, "identity returned an object of the class object, expected"),
        ({"reset": lambda self, seed: "  "}, "reset returned an empty text, expected the user's prompt"),
    ],
)
def test_what_a_class_forgets_is_named_when_it_is_loaded(members, expected):
    assert expected in serve(**members).answer(-1, "limits", None)["error"]


def test_an_answer_whose_text_is_its_address_is_an_error():
    server = serve(see=lambda self, number: object())
    server.reset(0, 7)
    assert (
        "tool see returned an object of the class object, expected str" in server.answer(0, "call", "see(1)")["error"]
    )
