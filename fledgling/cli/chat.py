"""`fledgling chat`: a conversation with a checkpoint in the terminal.

With -p, or with text on standard input, one answer goes to stdout and the program ends. Otherwise the conversation is
read by terminal_input.py, with commands that begin with a slash; Ctrl-C stops an answer, and at the prompt ends the
program. Control characters in a model's output are shown, never sent to the terminal.
"""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

from cyclopts import Parameter

from fledgling.cli.escape import escape_control_characters
from fledgling.cli.mcp import ask_in_terminal, start_mcp_tools
from fledgling.cli.options import ChatCheckpoint, Device, Repeated, RunPython
from fledgling.cli.terminal_input import input_history, read_message
from fledgling.config import UserError

if TYPE_CHECKING:
    from fledgling.infer.chat_session import ChatSession
    from fledgling.infer.mcp_tools import McpTools
    from fledgling.infer.sampling import SamplingParams

HELP = """/help            show this list
/again           answer the last message again, with the next seed
/set NAME VALUE  set temperature, top_k, top_p, min_p, max_new_tokens or seed; /set alone shows them
/history         show the conversation
/clear           begin a new conversation
/exit            exit (or Ctrl-D)
\\ at the end     the message continues on the next line; \"\"\" begins and ends a message of several lines
Ctrl-C           stop the answer"""
SETTABLE = {"temperature": float, "top_k": int, "top_p": float, "min_p": float, "max_new_tokens": int, "seed": int}
DIM, RESET = "\x1b[2m", "\x1b[0m"


def chat(
    checkpoint: ChatCheckpoint,
    /,
    *,
    prompt: Annotated[str | None, Parameter(name=("--prompt", "-p"))] = None,
    system: str = "",
    temperature: float = 0.8,
    top_k: int = 50,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    max_new_tokens: int = 256,
    device: Device = "auto",
    python: RunPython = False,
    mcp: Repeated = (),
    allow_tool: Repeated = (),
) -> int:
    """Chat with a checkpoint in the terminal.

    Parameters
    ----------
    prompt
        Answer this message and exit; "-" reads it from standard input, as does piped text.
    system
        System prompt.
    temperature
        0 always takes the most likely token; 1 samples from the model's distribution; at most 2.
    top_k
        Sample from this many most likely tokens; 0: from all.
    top_p
        Sample from the fewest tokens whose probabilities sum to this.
    min_p
        Sample from tokens with at least this share of the most likely token's probability.
    seed
        The same seed and the same messages give the same answers.
    max_new_tokens
        Maximum length of an answer in tokens.
    mcp
        The command of an MCP server, whose tools the model may call; you are asked before each call. May be repeated.
    allow_tool
        A tool of an MCP server that is called without asking; may be repeated.
    """
    from fledgling.infer.sampling import SamplingParams

    sampling = SamplingParams(temperature, top_k, top_p, min_p, max_new_tokens, seed)  # raises before a model is loaded
    require_server_temperature(sampling)
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if prompt == "-" or (prompt is None and not sys.stdin.isatty()):
        prompt = sys.stdin.read()
        if not prompt.strip():
            raise UserError("standard input is empty; expected the text to answer (or give it with -p)")
    tools = start_mcp_tools(mcp, allow_tool, ask_in_terminal if sys.stdin.isatty() else None)
    try:
        session = _open_session(checkpoint, system, device, python, tools)
        if prompt is not None:
            reason = print_reply(session, prompt, sampling, sys.stdout, sys.stderr)
            return 130 if reason == "interrupted" else 0 if session.turns else 1
        return run_conversation(session, sampling, sys.stdout)
    finally:
        if tools:
            tools.close()


def _open_session(checkpoint: Path, system: str, device: str, python: bool, tools: McpTools | None) -> ChatSession:
    from fledgling.infer.chat_session import ChatSession, load_chat_engine
    from fledgling.infer.tools import select_tool

    tool = select_tool(python)  # raises before the model is loaded

    def notify(text: str) -> None:
        print(text, file=sys.stderr)

    without_tools = system if tools else None
    if tools:
        tool, system = tools.extend(tool), tools.add_to_system(system)
    engine, _ = load_chat_engine(checkpoint, device, tool, notify=notify)
    if tools and not engine.has_tool_tokens:
        raise UserError(f"--mcp: the tokenizer of {checkpoint} has no <|python_start|>; its model cannot call tools")
    return ChatSession(engine, system=system, without_tools=without_tools)


def run_conversation(session: ChatSession, sampling: SamplingParams, out: TextIO) -> int:
    """Reads messages from the terminal and answers them until the user exits; returns the exit code."""
    with input_history():
        print("Type a message, or /help.", file=sys.stderr)
        while True:
            try:
                text = read_message()
            except (EOFError, KeyboardInterrupt):
                print(file=out)
                return 0
            command, _, rest = text.partition(" ")
            if text in ("/exit", "/quit"):
                return 0
            if text == "/help":
                print(HELP, file=out)
            elif text == "/clear":
                session.clear()
                print("New conversation.", file=out)
            elif text == "/history":
                print(format_history(session), end="", file=out)
            elif command == "/set":
                sampling = _set(sampling, rest.split(), out)
            elif text == "/again":
                sampling = replace(sampling, seed=sampling.seed + 1)
                if (last := session.pop_turn()) is None:
                    print("there is no message to answer again", file=out)
                else:
                    print_reply(session, last, sampling, out, out)
            elif text.startswith("/"):
                print(f"no such command: {escape_control_characters(command)} (/help lists them)", file=out)
            elif text:
                print_reply(session, text, sampling, out, out)


def require_server_temperature(sampling: SamplingParams) -> None:
    """Raises UserError for a temperature above the server's highest."""
    from fledgling.infer.sampling import MAX_TEMPERATURE

    if sampling.temperature > MAX_TEMPERATURE:
        raise UserError(f"temperature = {sampling.temperature}: expected at most {MAX_TEMPERATURE}, as in the server")


def _set(sampling: SamplingParams, words: list[str], out: TextIO) -> SamplingParams:
    """Returns the sampling parameters with one value changed, or unchanged where it is invalid; prints them."""
    if len(words) == 2 and words[0] in SETTABLE:
        try:
            changed = replace(sampling, **{words[0]: SETTABLE[words[0]](words[1])})
            require_server_temperature(changed)
            sampling = changed
        except ValueError:
            print(f"{words[0]}: got {escape_control_characters(words[1])}, expected a number", file=out)
        except UserError as error:
            print(error, file=out)
    elif words:
        print(f"expected /set and one of {', '.join(SETTABLE)} with its value", file=out)
    print(", ".join(f"{name} {getattr(sampling, name)}" for name in SETTABLE), file=out)
    return sampling


def format_history(session: ChatSession) -> str:
    """Returns the conversation as text, one paragraph a message."""
    lines = []
    for message in session.messages:
        parts = message["content"]
        text, kind = "", "text"
        for part in [{"type": "text", "text": parts}] if isinstance(parts, str) else parts:
            text += _choose_separator(kind, part["type"], False) + escape_control_characters(part["text"])
            kind = part["type"]
        lines.append(f"{message['role']}: {text}{_choose_separator(kind, 'text', False)}\n")
    return "".join(lines)


def print_reply(session: ChatSession, text: str, sampling: SamplingParams, out: TextIO, notices: TextIO) -> str:
    """Prints the answer to one message as it is generated; returns its finish reason. Ctrl-C ends the answer only."""
    from fledgling.infer.chat_session import SessionNotice
    from fledgling.infer.engine import FinishEvent

    styled = out.isatty()
    kind, reason = "text", "stop"
    reply = session.reply(text, sampling)
    try:
        for event in reply:
            if isinstance(event, SessionNotice):
                print(f"({event.text})", file=notices)
            elif isinstance(event, FinishEvent):
                reason = event.finish_reason
            else:
                text = escape_control_characters(event.text)
                if event.kind == "thinking" and not styled:  # a file gets the answer alone
                    print(text, end="", file=notices, flush=True)
                else:
                    print(_choose_separator(kind, event.kind, styled) + text, end="", file=out, flush=True)
                    kind = event.kind
    except KeyboardInterrupt:
        reason = "interrupted"
    finally:
        reply.close()
    print(_choose_separator(kind, "text", styled), file=out, flush=True)
    if reason in ("length", "context") and session.turns:
        cause = "--max-new-tokens is reached" if reason == "length" else "the context is full"
        print(f"(answer cut: {cause})", file=notices)
    return reason


def _choose_separator(before: str, after: str, styled: bool) -> str:
    """Returns the text between two kinds of parts: a tool call is shown as [2+3 = 5], a thought in a line before."""
    if before == after:
        return ""
    if (before, after) == ("python", "output"):
        return " = "
    closing = "" if before == "text" else f"]{RESET if styled else ''}"
    closing += "\n" if before == "thinking" else ""
    opening = "" if after == "text" else f"{DIM if styled else ''}["
    return closing + opening
