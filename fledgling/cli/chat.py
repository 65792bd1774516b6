"""`fledgling chat`: talk with a checkpoint in the terminal.

With -p, or with text on standard input, one answer goes to stdout and the program ends. Otherwise it is a
conversation, read by typed.py, with commands that begin with a slash; Ctrl-C stops an answer, and a second one at the
prompt leaves.
What a model writes is never sent to the terminal as it is: control characters are shown, not obeyed.
"""

from __future__ import annotations

import io
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

from cyclopts import Parameter

from fledgling.cli.options import Device
from fledgling.cli.terminal_input import input_history, read_message
from fledgling.config import UserError

if TYPE_CHECKING:
    from fledgling.infer.sampling import SamplingParams
    from fledgling.infer.session import ChatSession

HELP = """/help            this
/again           another answer to the same
/set NAME VALUE  draw otherwise: temperature, top_k, top_p, min_p, max_tokens, seed; /set shows them
/history         what was said
/clear           begin a new conversation
/exit            leave (so does Ctrl-D)
\\ at its end     the line goes on; \"\"\" begins a text of several lines, \"\"\" ends it
Ctrl-C           stop the answer"""
SETTABLE = {"temperature": float, "top_k": int, "top_p": float, "min_p": float, "max_new_tokens": int, "seed": int}
DIM, RESET = "\x1b[2m", "\x1b[0m"


def chat(
    checkpoint: Path,
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
    python: bool = False,
) -> int:
    """Talk with a checkpoint.

    Parameters
    ----------
    checkpoint
        A checkpoint, a stage or a run directory; of a run, what its last finished stage left.
    prompt
        Answer this and leave; "-" reads it from standard input, as does text piped there.
    system
        What the model is told before the conversation.
    temperature
        0 always takes the likeliest token; 1 draws as the model believes.
    top_k
        Draw from so many likeliest tokens; 0: from all.
    top_p
        Draw from the fewest tokens that hold this probability.
    min_p
        Draw from tokens at least this share as likely as the likeliest.
    seed
        The same seed and the same words give the same answers.
    max_new_tokens
        Longest answer.
    python
        Run what the calculator refuses as Python, in the sandbox's interpreter.
    """
    from fledgling.infer.sampling import SamplingParams

    sampling = SamplingParams(temperature, top_k, top_p, min_p, max_new_tokens, seed)  # complains before anything loads
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if prompt == "-" or (prompt is None and not sys.stdin.isatty()):
        prompt = sys.stdin.read()
        if not prompt.strip():
            raise UserError("standard input is empty; expected the text to answer (or give it with -p)")
    session = _session(checkpoint, system, device, python)
    if prompt is not None:
        reason = print_reply(session, prompt, sampling, sys.stdout, sys.stderr)
        return 130 if reason == "interrupted" else 0 if session.turns else 1
    return run_conversation(session, sampling, sys.stdout)


def _session(checkpoint: Path, system: str, device: str, python: bool) -> ChatSession:
    import torch

    from fledgling.infer.engine import Engine
    from fledgling.infer.session import ChatSession
    from fledgling.infer.tools import CALCULATOR, PYTHON
    from fledgling.infer.weights import load_model
    from fledgling.runtime.device import choose_dtype
    from fledgling.runtime.world import choose_device

    if python:
        from fledgling.sandbox.interpreter import import_monty

        import_monty()  # complains before anything loads
    place = torch.device(choose_device(device))
    model, tokenizer, _ = load_model(checkpoint, place)
    missing = [name for name in ("<|user_start|>", "<|assistant_end|>") if name not in tokenizer.special_tokens]
    if missing:
        raise UserError(f"the tokenizer of {checkpoint} has no {missing[0]}: it was not made for conversation")
    return ChatSession(
        Engine(model, tokenizer, dtype=choose_dtype(place), tool=PYTHON if python else CALCULATOR), system=system
    )


def run_conversation(session: ChatSession, sampling: SamplingParams, out: TextIO) -> int:
    """Read turns from the terminal until the person leaves; return the exit code."""
    with input_history():
        print("Say something, or /help.", file=sys.stderr)
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
                print("A new conversation.", file=out)
            elif text == "/history":
                print(format_history(session), end="", file=out)
            elif command == "/set":
                sampling = _set(sampling, rest.split(), out)
            elif text == "/again":
                sampling = replace(sampling, seed=sampling.seed + 1)
                if (last := session.pop_turn()) is None:
                    print("nothing was said yet", file=out)
                else:
                    print_reply(session, last, sampling, out, out)
            elif text.startswith("/"):
                print(f"no such command: {printable(command)} (/help lists them)", file=out)
            elif text:
                print_reply(session, text, sampling, out, out)


def _set(sampling: SamplingParams, words: list[str], out: TextIO) -> SamplingParams:
    """The sampling with one value changed, or as it was where that cannot be; says how it is now."""
    if len(words) == 2 and words[0] in SETTABLE:
        try:
            sampling = replace(sampling, **{words[0]: SETTABLE[words[0]](words[1])})
        except ValueError:
            print(f"{words[0]}: got {printable(words[1])}, expected a number", file=out)
        except UserError as problem:
            print(problem, file=out)
    elif words:
        print(f"expected /set and one of {', '.join(SETTABLE)} with its value", file=out)
    print(", ".join(f"{name} {getattr(sampling, name)}" for name in SETTABLE), file=out)
    return sampling


def format_history(session: ChatSession) -> str:
    """The conversation as text, a paragraph a turn."""
    lines = []
    for message in session.messages:
        parts = message["content"]
        shown, kind = "", "text"
        for part in [{"type": "text", "text": parts}] if isinstance(parts, str) else parts:
            shown += _separator(kind, part["type"], False) + printable(part["text"])
            kind = part["type"]
        lines.append(f"{message['role']}: {shown}{_separator(kind, 'text', False)}\n")
    return "".join(lines)


def print_reply(session: ChatSession, text: str, sampling: SamplingParams, out: TextIO, notices: TextIO) -> str:
    """Print the answer to one text as it is drawn; return why it ended. Ctrl-C ends the answer alone."""
    from fledgling.infer.engine import FinishEvent
    from fledgling.infer.session import SessionNotice

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
                shown = _separator(kind, event.kind, styled) + printable(event.text)
                kind = event.kind
                print(shown, end="", file=out, flush=True)
    except KeyboardInterrupt:
        reason = "interrupted"
    finally:
        reply.close()
    print(_separator(kind, "text", styled), file=out, flush=True)
    if reason in ("length", "context") and session.turns:
        print(f"(cut short: {'--max-new-tokens' if reason == 'length' else 'the context is full'})", file=notices)
    return reason


def _separator(before: str, after: str, styled: bool) -> str:
    """What to print between two kinds of pieces, so that a tool's call reads [2+3 = 5]."""
    if before == after:
        return ""
    if (before, after) == ("python", "output"):
        return " = "
    closing = "" if before == "text" else f"]{RESET if styled else ''}"
    opening = "" if after == "text" else f"{DIM if styled else ''}["
    return closing + opening


def printable(text: str) -> str:
    """Text that a terminal shows but does not obey: control characters and those that reorder text are named.

    Line ends and tabs stay. C0 controls become their pictures (U+2400 and on), the others \\x.. or \\u.... .
    """
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    code = ord(character)
    if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    if character in "\u200c\u200d":  # joiners: words and emoji are written with them
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
