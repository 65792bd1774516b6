"""MCP servers of `chat` and `serve`: their options, and the question before a call."""

import builtins

import pytest

from fledgling.cli import main
from fledgling.cli.mcp import ask_in_terminal, start_mcp_tools
from fledgling.config import UserError
from tests.cli.test_chat import checkpoint, model, tokenizer  # noqa: F401 - fixtures


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--allow-tool", "add"], "--allow-tool add: there is no MCP server; name one with --mcp COMMAND"),
        (["--mcp", "'"], 'MCP server "\'": No closing quotation'),
        (["--mcp", " "], "an MCP server's command is empty"),
    ],
)
@pytest.mark.parametrize("verb", ["chat", "serve"])
def test_servers_that_cannot_be_started_are_one_line(verb, options, message, checkpoint, capsys):  # noqa: F811
    if "--mcp" in options:
        pytest.importorskip("mcp", reason="the extra `mcp` is not installed")
    more = ["-p", "hello"] if verb == "chat" else ["--port", "0"]
    assert main([verb, str(checkpoint), *more, *options]) == 1
    assert message in capsys.readouterr().err


def test_without_a_server_there_is_no_tool():
    assert start_mcp_tools([], []) is None
    with pytest.raises(UserError, match="there is no MCP server"):
        start_mcp_tools([], ["add"])


@pytest.mark.parametrize(("typed", "agreed"), [("y", True), (" YES ", True), ("", False), ("n", False), ("yy", False)])
def test_only_a_yes_agrees(typed, agreed, monkeypatch):
    shown = []
    monkeypatch.setattr(builtins, "input", lambda text: shown.append(text) or typed)
    assert ask_in_terminal("add", {"a": "\x1b[2J", "b": "x" * 5000}) is agreed
    assert "\x1b" not in shown[0] and len(shown[0]) < 1200 and "Call add with" in shown[0]


@pytest.mark.parametrize("error", [EOFError, KeyboardInterrupt])
def test_the_end_of_the_input_and_an_interrupt_deny(error, monkeypatch):
    def end(text):
        raise error

    monkeypatch.setattr(builtins, "input", end)
    assert ask_in_terminal("add", {}) is False
