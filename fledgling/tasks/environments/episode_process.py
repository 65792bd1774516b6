"""A user's environment in a restricted process of its own, which can be timed and ended: JSON lines in and out.

    python -m fledgling.tasks.environments.episode_process SPEC        SPEC: module:Class, or path.py:Class

One process keeps the episodes of all environments of a class, by number. A class that raises, hangs or exits ends the
round with its name and the instance. A ToolError of a tool is an observation. Once the class is loaded, its process can
read Python's folders and its own, and cannot write, connect, or start a process or thread (`enter_sandbox`).
"""

from __future__ import annotations

import itertools
import os
import platform
import random
import resource
import socket
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

from fledgling.config import UserError
from fledgling.runtime.json_process import JsonProcess, serve_json_lines
from fledgling.runtime.user_code import describe_exception, load_object
from fledgling.sandbox import restrictions
from fledgling.tasks.environments.environment import (
    Environment,
    Episode,
    ToolError,
    find_instance_problem,
    find_limit_problem,
    find_tool_problem,
    parse_call,
    run_call,
    start_instance,
    to_text,
)

LOAD_TIMEOUT = 120.0  # seconds that a class's module may take to import
CALL_TIMEOUT = 10.0  # seconds of one reset, call or reward
MAX_MEMORY = 8 << 30  # bytes of address space
MAX_EPISODES = 1 << 16  # that a process keeps; the oldest are dropped


class RemoteEnvironment(Environment):
    """Passes every method to the process of the user's class."""

    spec: ClassVar[str]

    def __init__(self) -> None:
        self.process, self.number = _get_process(self.spec), next(_NUMBERS)
        self.state: dict[str, Any] = {}

    def reset(self, seed: int) -> str:
        """Starts instance `seed`."""
        self.seed = seed
        self.state = self._ask("reset", seed)
        return self.state["prompt"]

    def tools(self) -> Mapping[str, Callable[..., str]]:
        """Returns no function: calls are parsed by the class's own process."""
        return {}

    def run(self, text: str) -> str:
        """Runs a call in the process."""
        reply = self._ask("call", text)
        self.last_reward = float(reply["turn_reward"])
        if "tool_error" in reply:
            raise ToolError(reply["tool_error"])
        return reply["observation"]

    @property
    def solution(self) -> str:
        """The answer of a perfect player."""
        return self.state["solution"]

    @property
    def identity(self) -> str:
        """What the instance is."""
        return self.state["identity"]

    def reward(self, answer: str) -> float:
        """Returns the score of the episode."""
        return float(self._ask("reward", answer)["reward"])

    def turn_reward(self) -> float:
        """Returns the reward of the last call."""
        return self.last_reward

    def demonstrate(self, call: Callable[[str], str], rng: random.Random) -> str:
        """Plays the demonstration in the process, then repeats its calls."""
        reply = self._ask("demonstrate", rng.randrange(2**31))
        if reply.get("missing"):
            raise NotImplementedError
        for text in reply["calls"]:
            call(text)
        return reply["answer"]

    def _ask(self, method: str, argument: Any) -> dict[str, Any]:
        reply = self.process.ask({"number": self.number, "method": method, "argument": argument}, CALL_TIMEOUT)
        if "error" in reply:
            _get_process.cache_clear()
            self.process.close()
            raise UserError(f"environment {self.spec}, instance {self.seed}: {method} {reply['error']}")
        return reply


_NUMBERS = itertools.count()


@cache
def _get_process(spec: str) -> JsonProcess:
    """Returns the running process of a class. Raises UserError if it cannot be loaded."""
    process = JsonProcess([sys.executable, "-m", "fledgling.tasks.environments.episode_process", spec])
    reply = process.read_reply(LOAD_TIMEOUT) or {"error": "cannot be loaded: its process wrote nothing"}
    if "error" in reply:
        process.close()
        raise UserError(f"environment {spec} {reply['error']}; expected module:Class or path/to/file.py:Class")
    return process


@cache
def make_remote_class(spec: str) -> type[RemoteEnvironment]:
    """Returns a class of environments that run in the process of `spec`, with the class's limits."""
    limits = _get_process(spec).ask({"number": -1, "method": "limits", "argument": None}, CALL_TIMEOUT)
    if "error" in limits:
        _get_process(spec).close()
        _get_process.cache_clear()
        raise UserError(f"environment {spec}: {limits['error']}")
    return type("RemoteEnvironment", (RemoteEnvironment,), {"spec": spec, **limits})


def load_environment_class(spec: str) -> type[Environment]:
    """Returns the class that `module:Class` or `path.py:Class` names. Raises TypeError if it is no Environment."""
    loaded = load_object(spec)
    if not (isinstance(loaded, type) and issubclass(loaded, Environment)):
        raise TypeError(f"{spec.rpartition(':')[2]} is not a subclass of fledgling.tasks.environments.Environment")
    return loaded


def enter_sandbox(folders: Sequence[str]) -> None:
    """Restricts this process for good to reading Python's folders and `folders`.

    Nothing can be written, no connection made, no process and no thread started. Raises RestrictionError, with nothing
    applied, where the kernel has no Landlock or no seccomp.
    """
    if not restrictions.has_seccomp():
        raise restrictions.RestrictionError("seccomp: not in this kernel")
    python = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    libraries = ["/lib", "/lib64", "/usr/lib", "/etc/ld.so.cache", "/dev/null", "/dev/urandom"]
    ruleset = restrictions.make_landlock_ruleset([*python, package, *libraries, *folders])
    seccomp_filter = restrictions.build_seccomp_filter(platform.machine())
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))  # not of files: prints may go to one
    restrictions.drop_capabilities()
    restrictions.set_no_new_privileges()
    restrictions.apply_landlock(ruleset)
    restrictions.apply_seccomp(seccomp_filter)


def load_server(spec: str) -> EpisodeServer:
    """Loads a class and restricts this process, unless the class has `sandboxed = False`."""
    loaded = load_environment_class(spec)
    if loaded.sandboxed:
        place = spec.rpartition(":")[0]
        folder = os.path.dirname(os.path.abspath(place)) if place.endswith(".py") else os.getcwd()
        try:
            enter_sandbox([folder])
        except restrictions.RestrictionError as error:
            raise RuntimeError(f"no sandbox here ({error}); sandboxed = False in the class runs it without") from None
    return EpisodeServer(loaded)


class EpisodeServer:
    """The child's side: the episodes of one class, by number."""

    def __init__(self, make_environment: type[Environment]) -> None:
        self.make_environment = make_environment
        self.environments: dict[int, Environment] = {}
        self.seeds: dict[int, int] = {}

    def answer(self, number: int, method: str, argument: Any) -> dict[str, Any]:
        """Returns the reply to one request; {"error": why} where the user's code raises."""
        try:
            return getattr(self, method)(number, argument)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            return {"error": f"raised {describe_exception(error)}{self.explain_sandbox(error)}"}

    def explain_sandbox(self, error: BaseException) -> str:
        """Returns what the sandbox has to do with an error, to be appended to it; "" if nothing."""
        causes = (error, error.__cause__, error.__context__)
        is_denied = any(isinstance(each, PermissionError | socket.gaierror) for each in causes)
        if not self.make_environment.sandboxed or not (is_denied or "start new thread" in str(error)):
            return ""
        return (
            "; the sandbox reads the class's folder and Python's, and allows no writing, network, process or thread: "
            "sandboxed = False in the class runs it without"
        )

    def limits(self, number: int, argument: None) -> dict[str, Any]:
        """Returns the class's limits; {"error": why} where its tools or instances cannot be used."""
        environment = self.make_environment()
        environment.reset(0)  # tools may depend on the instance
        problem = find_limit_problem(self.make_environment) or find_tool_problem(environment.tools())
        if problem := problem or find_instance_problem(self.make_environment):
            return {"error": problem}
        return {"max_turns": self.make_environment.max_turns, "max_new_tokens": self.make_environment.max_new_tokens}

    def reset(self, number: int, seed: int) -> dict[str, Any]:
        """Starts instance `seed` as episode `number`."""
        environment = self.environments[number] = self.make_environment()
        self.seeds[number] = seed
        while len(self.environments) > MAX_EPISODES:
            oldest = next(iter(self.environments))
            del self.environments[oldest], self.seeds[oldest]
        return start_instance(environment, seed)

    def call(self, number: int, text: str) -> dict[str, Any]:
        """Runs a call of the model."""
        environment = self.environments[number]
        try:
            reply = {"observation": run_call(environment.tools(), text)}
        except ToolError as error:
            reply = {"tool_error": str(error)}
        return {**reply, "turn_reward": float(environment.turn_reward())}

    def reward(self, number: int, answer: str) -> dict[str, Any]:
        """Scores an episode."""
        return {"reward": float(self.environments[number].reward(answer))}

    def demonstrate(self, number: int, seed: int) -> dict[str, Any]:
        """Plays a demonstration, and starts the instance again: the caller repeats the calls."""
        episode = Episode(self.environments[number], self.seeds[number])  # with its limits, as the model would see them

        def call(text: str) -> str:
            try:
                parse_call(text)
            except (ToolError, AttributeError, TypeError):
                raise TypeError(f"call({text!r:.60}): expected the text of a call, such as 'name(1)'") from None
            return episode.call(text)

        try:
            answer = to_text(episode.environment.demonstrate(call, random.Random(seed)), "demonstrate")
        except NotImplementedError:
            return {"missing": True}
        self.reset(number, self.seeds[number])
        return {"calls": [text for text, _ in episode.calls], "answer": answer}


if __name__ == "__main__":
    serve_json_lines(lambda: load_server(sys.argv[1]), lambda server, request: server.answer(**request))
