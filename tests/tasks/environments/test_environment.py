"""Episodes: calls of a model are parsed, bounded and played again; the shipped worlds can be won, and not by chance."""

import contextlib
import json
import random
import re
import warnings

import pytest

from fledgling.config import UserError
from fledgling.tasks.environments import ENVIRONMENTS, load_environment_task
from fledgling.tasks.environments.database import Database
from fledgling.tasks.environments.environment import (
    MAX_OBSERVATION_CHARACTERS,
    Episode,
    ToolError,
    find_instance_problem,
    find_tool_problem,
    parse_call,
    play_transcript,
    run_call,
    write_transcript,
)
from fledgling.tasks.environments.file_tree import FileTree
from fledgling.tasks.environments.guessing import Guessing
from fledgling.tasks.environments.task import EnvironmentTask
from fledgling.tasks.environments.web_shop import WebShop
from fledgling.tasks.task import DEV, TEST

HOSTILE = [
    "", "guess", "guess(", "guess(x)", "guess(1", "a.b(1)", "guess(*[1])", "guess(**{})", "(lambda: 1)()",
    "__import__('os').system('x')", "x" * 10_000, "guess(" + "(" * 150 + ")", "guess(1)(2)",
    "guess(1); guess(2)", "guess('a')", "guess(1.5)", "guess(True)", "guess()", "guess(1, 2)", "guess(number=1, n=2)",
    "open('/etc/passwd')", "guess(\x00)", "guess([1]*10**9)",
]  # fmt: skip


def transcribe(episode, answer):
    return write_transcript([call for call, _ in episode.calls], answer)


def shipped(name):
    return load_environment_task(f"env:{name}", name)


def play_guessing(episode):
    """Halves the range until the number is known."""
    low, high = episode.environment.low, episode.environment.high
    while low < high:
        middle = (low + high) // 2
        reply = episode.call(f"guess({middle})")
        if reply == "yes":
            return str(middle)
        low, high = (middle + 1, high) if reply == "higher" else (low, middle - 1)
    return str(low)


def play_file_tree(episode):
    for folder in episode.call('ls("")').split():
        for file in episode.call(f'ls("{folder}")').split():
            if len(episode.calls) < episode.environment.max_turns:
                word = episode.prompt.split("?")[0].split()[-1]
                if episode.call(f'grep("{word}", "{folder}/{file}")') == "yes":
                    return f"{folder}/{file}"
            else:
                return f"{folder}/{file}"  # the last one


def play_database(episode):
    table = episode.call("tables()")
    column = episode.call(f"columns('{table}')").split()[-1]
    order = "DESC" if "most" in episode.prompt else "ASC"
    return episode.call(f'sql("SELECT name FROM {table} ORDER BY {column} {order} LIMIT 1")')


def play_web_shop(episode):
    _, _, color, thing = episode.prompt.split(".")[0].split()
    offers = [offer for page in (1, 2) for offer in episode.call(f'search("{thing}", {page})').split()]
    for offer in offers:
        if episode.call(f'stock({offer}, "{color}")') == "yes":
            episode.call(f"buy({offer})")
            return offer


CLASSES = {"guessing": Guessing, "file_tree": FileTree, "database": Database, "web_shop": WebShop}
PLAYERS = {
    "guessing": play_guessing,
    "file_tree": play_file_tree,
    "database": play_database,
    "web_shop": play_web_shop,
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_perfect_player_always_wins_and_the_demonstrations_seldom_do(name):
    task = shipped(name)
    wins, turns, demonstrated = 0, 0, 0
    for index in range(150):
        question = task.get_practice_question(index, 1)
        episode = task.start(question)
        transcript = transcribe(episode, PLAYERS[name](episode))
        wins += task.score(question, transcript)
        turns += len(episode.calls)
        rng = random.Random(index)
        episode = task.start(question)
        demonstrated += task.score(question, transcribe(episode, episode.environment.demonstrate(episode.call, rng)))
    assert wins == 150
    assert turns / 150 >= 2.5  # a lucky guess may end the game early
    assert demonstrated / 150 < 0.3


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_episode_played_again_from_its_transcript_is_the_same(name):
    task = shipped(name)
    question = task.get_practice_question(3, 1)
    episode = task.start(question)
    answer = PLAYERS[name](episode)
    again, text = play_transcript(CLASSES[name](), question.facts["seed"], transcribe(episode, answer))
    assert (again.calls, again.turn_rewards, text) == (episode.calls, episode.turn_rewards, answer)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_no_instance_of_an_exam_is_demonstrated_or_practised(name):
    task = shipped(name)
    exams = dict(task.list_exams({TEST: 40, DEV: 40}))
    assert {label: len(questions) for label, questions in exams.items()} == {
        f"env:{name}_test": 40,
        f"env:{name}_dev": 40,
    }

    def identity(question):
        return task.start(question).environment.identity

    held_out = [{identity(question) for question in questions} for questions in exams.values()]
    practised = {identity(task.get_practice_question(i, 1)) for i in range(300)}
    assert not held_out[0] & held_out[1] and not (held_out[0] | held_out[1]) & practised
    prompts = {task.get_train_conversation(i, 1)["messages"][0]["content"] for i in range(20)}
    assert len(prompts) > 1


@pytest.mark.parametrize("text", HOSTILE)
def test_a_call_that_is_no_call_is_an_observation(text):
    episode = shipped("guessing").start(shipped("guessing").get_practice_question(0, 1))
    assert episode.call(text).startswith("error: ")


def test_the_rewards_of_turns_add_up_to_the_share_of_what_was_found():
    for name, most in (("guessing", 1.0), ("file_tree", 1.0), ("web_shop", 1.0), ("database", 0.0)):
        task = shipped(name)
        for index in range(20):
            episode = task.start(task.get_practice_question(index, 1))
            PLAYERS[name](episode)
            PLAYERS[name](episode)  # what is known already is not rewarded again
            assert 0 <= sum(episode.turn_rewards) <= most + 1e-9 and min(episode.turn_rewards) >= 0
    episode = shipped("web_shop").start(shipped("web_shop").get_practice_question(0, 1))
    for offer in list(episode.environment.offers):
        episode.call(f'stock({offer}, "red")')
        episode.call('stock(3, "red")')
    assert sum(episode.turn_rewards) == pytest.approx(1.0) and len(episode.turn_rewards) == 8


def test_turns_beyond_the_last_are_not_run():
    episode = shipped("guessing").start(shipped("guessing").get_practice_question(0, 1))
    replies = [episode.call("guess(1)") for _ in range(6)]
    assert [reply.startswith("error: no turn left") for reply in replies] == [False] * 3 + [True] * 3


@pytest.mark.parametrize(
    "query",
    [
        "DROP TABLE {t}",
        "INSERT INTO {t} VALUES ('x', 1)",
        "ATTACH '/tmp/x' AS y",
        "PRAGMA table_info({t})",
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c",
        "SELECT count(*) FROM {t} a, {t} b, {t} c, {t} d, {t} e, {t} f, {t} g, {t} h, {t} i",
        "SELECT zeroblob(1000000000)",
        "SELECT load_extension('x')",
        "SELECT 1; SELECT 2",
        "SELECT hex(zeroblob(9))",
        "nonsense",
    ],
)
def test_a_query_reads_a_little_or_is_rejected(query):
    task = shipped("database")
    episode = task.start(task.get_practice_question(0, 1))
    query = query.replace("{t}", episode.environment.table)
    assert episode.call(f"sql({query!r})").startswith("error: ")
    assert len(episode.environment.rows) == 8


def test_a_long_answer_of_a_tool_is_cut():
    class Long(type(shipped("guessing").make_environment())):
        def compare(self, number: int) -> str:
            return "x" * 10**6

    episode = Episode(Long(), 1)
    assert len(episode.call("guess(1)")) == MAX_OBSERVATION_CHARACTERS


def test_a_transcript_is_read_as_a_whole_or_as_the_answer():
    task = shipped("guessing")
    question = task.get_practice_question(0, 1)
    assert task.score(question, question.answer) == 1.0
    assert task.score(question, json.dumps({"calls": "guess(1)", "answer": question.answer})) == 1.0
    assert task.score(question, '{"calls": 3}') == 0.0


def test_arguments_may_be_named():
    assert parse_call("f(1, b='x')") == ("f", [1], {"b": "x"})

    def half(number: float) -> str:
        return str(number / 2)

    assert run_call({"half": half}, "half(number=3)") == "1.5"
    with pytest.raises(ToolError, match="no tool g; there are half"):
        run_call({"half": half}, "g(3)")


def look_at_list(x: int, y: list[int]) -> str: ...
def look_at_optional(x: int | None = None) -> str: ...
def look_at_anything(x) -> str: ...
def look_at_missing(x: "Missing") -> str: ...  # noqa: F821
def look_without_answer(x: int) -> None: ...
def look_at_many(*x: int) -> str: ...
def look_at_names(**x: int) -> str: ...


def test_a_tool_that_returns_nothing_is_an_error_and_other_values_become_text():
    with pytest.raises(TypeError, match="tool look returned None, expected str"):
        run_call({"look": look_at_anything}, "look(1)")
    assert run_call({"look": lambda x: {"doors": x}}, "look(1)") == "{'doors': 1}"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("text", ["look(1a)", r"look('\d')", "look(1if 2else 3)", "1is 1"])
def test_python_warns_of_no_call_that_a_model_wrote(text):
    with warnings.catch_warnings(record=True) as seen, contextlib.suppress(ToolError):
        warnings.simplefilter("always")
        parse_call(text)
    assert seen == []


def test_instances_that_do_not_follow_from_their_seeds_are_named():
    class Unseeded(Guessing):
        def reset(self, seed):
            self.number = random.random()
            return "Guess."

        identity = property(lambda self: str(self.number))
        solution = "1"

    assert re.match(
        r"identity of seed 0 was '0.\d+', and is '0.\d+' after a second reset; ", find_instance_problem(Unseeded)
    )
    assert find_instance_problem(Guessing) == ""
    task = EnvironmentTask("unseeded", Unseeded)
    with pytest.raises(UserError, match=r"unseeded, instance .* when the episode is played again to score it"):
        task.score(task.get_practice_question(0, 1), "1")


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (look_at_list, "tool look: y has list[int], expected int, float, str or bool"),
        (look_at_optional, "tool look: x has int | None, expected int"),
        (look_at_anything, "tool look: x has no annotation, expected int"),
        (look_at_missing, "tool look: its annotations cannot be read (name 'Missing' is not defined)"),
        (look_at_many, "tool look: *x: "),
        (look_without_answer, "tool look: its annotation is -> None, expected to return the text"),
        (look_at_names, "tool look: **x: "),
        (3, "tools() has the entry 'look': 3"),
    ],
)
def test_a_tool_whose_parameters_cannot_be_checked_is_named(function, problem):
    assert find_tool_problem({"look": function}).startswith(problem)
    assert find_tool_problem([]).startswith("tools() returns list")


def test_the_tools_of_the_shipped_environments_can_be_checked():
    for name in ENVIRONMENTS:
        environment = shipped(name).make_environment()
        environment.reset(0)
        assert find_tool_problem(environment.tools()) == ""
