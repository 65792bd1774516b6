"""Tools of a real MCP server over stdio: listed, asked for, called; whatever it answers is bounded text."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from fledgling.config import UserError
from fledgling.infer.mcp_tools import DENIED, MAX_RESULT_CHARACTERS, McpTools, clean_text
from fledgling.infer.tools import CALCULATOR

pytestmark = pytest.mark.skipif(find_spec("mcp") is None, reason="the extra `mcp` is not installed")
if find_spec("mcp") is not None:
    from mcp import StdioServerParameters

    import_module("mcp.client.stdio")  # keeps the stderr of its import, which must be that of a file
SERVER = f"{sys.executable} {Path(__file__).parent / 'mcp_server.py'}"


@pytest.fixture(scope="module", autouse=True)
def patient_start():
    """Interpreters start slowly where several tests run at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fledgling.infer.mcp_tools.START_TIMEOUT", 300.0)
        yield


@pytest.fixture(scope="module")
def tools(patient_start):
    questions, notices = [], []

    def ask(name, arguments):
        questions.append((name, arguments))
        return arguments.get("a") != 13

    tools = McpTools([SERVER], ["echo"], ask, notices.append)
    tools.questions, tools.notices = questions, notices
    yield tools
    tools.close()


def call(name, **arguments):
    return json.dumps({"name": name, "arguments": arguments})


def test_tools_are_listed_and_a_name_that_is_none_is_left_out(tools):
    described = {tool["function"]["name"]: tool["function"] for tool in tools.describe()}
    assert set(described) == {"add", "echo", "fail", "long", "leave", "flood"}
    assert described["add"]["description"] == "Adds two numbers."
    assert set(described["add"]["parameters"]["properties"]) == {"a", "b"}
    assert len(tools.notices) == 1 and "is no identifier" in tools.notices[0]
    system = tools.add_to_system("Be brief.")
    assert system.startswith("Be brief.") and '"name": "add"' in system
    assert '"name": "add"' in tools.add_to_system("")


def test_every_call_is_asked_for_unless_its_tool_is_allowed(tools):
    tools.questions.clear()
    assert tools.run(call("echo", text="hi")) == "hi" and tools.questions == []
    assert tools.run(call("add", a=2, b=3)) == "5"
    assert tools.run(call("add", a=13, b=3)) == DENIED
    assert tools.questions == [("add", {"a": 2, "b": 3}), ("add", {"a": 13, "b": 3})]


def test_what_goes_wrong_is_a_text_for_the_model(tools):
    assert tools.run(call("fail")).startswith("error: ")
    assert tools.run(call("nope")).startswith("error: no tool nope; there are add")
    assert tools.run(call("add", a="x", b=1)).startswith("error:")
    for text in ("{", "{}", '{"name": 3}', '{"name": "add", "arguments": [1]}', "[" * 100_000, '{"name": ["a"]}'):
        assert tools.run(text).startswith("error: expected {")


def test_a_long_result_is_cut_and_has_no_control_characters(tools):
    result = tools.run(call("long"))
    assert len(result) < MAX_RESULT_CHARACTERS + 100 and result.endswith("more characters left out)")
    assert "\x1b" not in result and "\u202e" not in result
    assert clean_text("a\x00b\nc", 10) == "ab\nc"


def test_the_calls_of_other_tools_go_to_them(tools):
    tool = tools.extend(CALCULATOR)
    assert tool.run("2+3") == "5" and tool.run(call("echo", text="x")) == "x"


def test_two_servers_with_a_tool_of_one_name_are_rejected(tools):
    with pytest.raises(UserError, match="has a tool add, as another server does"):
        tools._add_tool("add", "", {}, 0)


@pytest.mark.parametrize("name", ["leave", "flood"])
def test_a_server_that_ends_or_floods_is_an_error_of_the_call_and_starts_again_at_the_next(name):
    notices = []
    tools = McpTools([SERVER], [name, "echo"], log=notices.append)
    try:
        answer = tools.run(call(name))
        end = "exit code 3" if name == "leave" else "a line has more than 1,000,000 bytes"
        assert answer.startswith("error:") and end in answer and "\n" not in answer
        assert [tools.run(call("echo", text="x")) for _ in range(2)] == ["x", "x"]
        assert sum("has ended: it is started again" in notice for notice in notices) == 1
    finally:
        tools.close()


def kill_newest_relay() -> None:
    """Kills the process between this one and the server that was started last."""
    find = ["pgrep", "-n", "-P", str(os.getpid()), "-f", "bounded_lines"]
    os.kill(int(subprocess.run(find, capture_output=True, text=True).stdout), signal.SIGKILL)


def test_a_server_whose_process_was_killed_starts_again_and_one_that_fails_to_is_tried_again(monkeypatch):
    tools = McpTools([SERVER], ["echo"])
    try:
        kill_newest_relay()
        answers = [tools.run(call("echo", text="x")) for _ in range(2)]
        assert answers == ["error: Connection closed", "x"]
        kill_newest_relay()
        assert tools.run(call("echo", text="x")).startswith("error:")
        with monkeypatch.context() as patch:
            patch.setattr(tools, "servers", [StdioServerParameters(command=sys.executable, args=["-c", "1"])])
            assert tools.run(call("echo", text="x")).startswith("error:")
        assert tools.run(call("echo", text="x")) == "x"
    finally:
        tools.close()


@pytest.mark.parametrize(
    ("commands", "allowed", "message"),
    [
        (["'"], [], "No closing quotation"),
        ([""], [], "is empty"),
        (
            [f"{sys.executable} -c 'print(1)'"],
            [],
            "did not start or list its tools: .*; exit code 0; .* left out, first '1'$",
        ),
        (["/nowhere/server"], [], r"list its tools: (?!.*TaskGroup)\w.*exit code 127; .*: No such file or directory$"),
        (
            [f"{sys.executable} -c 'import nothing_of_this_name'"],
            [],
            r"its tools: (?!.*TaskGroup)\w.*; exit code 1; its last line on stderr: .*No module named 'nothing_of_this",
        ),
        ([SERVER], ["nope"], "no tool nope to allow"),
    ],
)
def test_a_server_that_cannot_be_used_is_one_line(commands, allowed, message):
    with pytest.raises(UserError, match=message) as error:
        McpTools(commands, allowed)
    assert "\n" not in str(error.value)


def test_a_server_that_ends_at_every_call_leaves_no_task_and_no_client():
    tools = McpTools([SERVER], ["leave"])
    try:
        counts, held = [], []
        for _ in range(4):
            assert tools.run(call("leave")).startswith("error: ")
            counts.append(tools.portal.call(count_tasks))
            held.append(sum(client is not None for client in tools.clients))
        assert max(counts[1:]) <= counts[0] and max(held) <= 1
    finally:
        tools.close()


async def count_tasks() -> int:
    return len(asyncio.all_tasks())
